package main

import "errors"

// closers undoes what was opened, the last first.
type closers []func() error

func (c *closers) add(f func() error) { *c = append(*c, f) }

// addVoid adds a close that cannot fail.
func (c *closers) addVoid(f func()) {
	c.add(func() error { f(); return nil })
}

// close runs every function and joins what failed.
func (c *closers) close() error {
	var errs []error
	for i := len(*c) - 1; i >= 0; i-- {
		errs = append(errs, (*c)[i]())
	}
	*c = nil
	return errors.Join(errs...)
}
