package main

import (
	"fmt"
	"io"
)

// printer writes text and remembers the first failure, so that a page of output
// has one check at its end.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}
