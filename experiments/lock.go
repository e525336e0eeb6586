package experiments

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// LockedError says that another coordinator has the run directory.
type LockedError struct {
	Dir    string
	Holder string // what it wrote about itself: process and host
}

// Error implements error.
func (e *LockedError) Error() string {
	return fmt.Sprintf("run directory %s is in use by %s", e.Dir, e.Holder)
}

// lock takes the lock file of dir or says who has it. The file stays when the
// lock is given back: removing it would let two processes lock two files of one
// name.
func lock(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock run directory: %w", err)
	}
	taken, err := grab(f)
	if err == nil && taken {
		host, _ := os.Hostname() // for people only; empty will do
		err = f.Truncate(0)
		if err == nil {
			_, err = fmt.Fprintf(f, "process %d on %s\n", os.Getpid(), host)
		}
		if err == nil {
			return f, nil
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock run directory %s: %w", dir, err), f.Close())
	}
	holder, err := os.ReadFile(path)
	if err != nil || len(holder) == 0 {
		holder = []byte("another process")
	}
	return nil, errors.Join(&LockedError{Dir: dir, Holder: strings.TrimSpace(string(holder))}, f.Close())
}
