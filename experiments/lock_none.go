//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package experiments

import "os"

// grab cannot lock on this system: two coordinators on one run directory are
// then kept apart by the lease on the bus alone.
func grab(*os.File) (taken bool, err error) { return true, nil }
