package dataset

import (
	"errors"
	"fmt"
)

// BadRecord is a record that could not be taken: counted, reported, left out.
type BadRecord struct {
	File   string
	Record int // from 0, in file order
	Err    error
}

// Error implements error.
func (b *BadRecord) Error() string {
	return fmt.Sprintf("%s: record %d: %v", b.File, b.Record, b.Err)
}

// Unwrap returns the cause.
func (b *BadRecord) Unwrap() error { return b.Err }

// TooManyBadError stops the work before it begins: the share of bad records is
// above the limit.
type TooManyBadError struct {
	File    string
	Bad     int
	Records int
	Limit   float64
	First   []*BadRecord // the first few, as examples
}

// Error implements error.
func (e *TooManyBadError) Error() string {
	text := fmt.Sprintf("%s: %d of %d records are bad, more than the share %g allowed",
		e.File, e.Bad, e.Records, e.Limit)
	for _, b := range e.First {
		text += "\n  " + b.Error()
	}
	return text
}

// Causes of bad records and files, for errors.Is.
var (
	// ErrFormat marks bytes that are not what the file should hold.
	ErrFormat = errors.New("bad format")
	// ErrImage marks an image that is missing, empty, truncated, too large or of
	// an unknown type.
	ErrImage = errors.New("bad image")
	// ErrFields marks a record that lacks a field or has too much of one.
	ErrFields = errors.New("bad fields")
)
