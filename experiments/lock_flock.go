//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package experiments

import (
	"errors"
	"os"
	"syscall"
)

// grab takes an exclusive lock on f without waiting. The kernel gives it back
// when the process ends, however it ends.
func grab(f *os.File) (taken bool, err error) {
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}
