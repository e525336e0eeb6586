package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
)

// errInterrupted is the cause of the work context after the second interrupt.
var errInterrupted = errors.New("interrupted twice")

// interrupts subscribes to Ctrl-C and termination.
func interrupts() (<-chan os.Signal, func()) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	return signals, func() { signal.Stop(signals) }
}

// watch turns interrupts into two contexts: admit ends at the first, work at
// the second.
type watch struct {
	admit, work context.Context
	interrupted atomic.Int32
	stop        func()
}

func watchSignals(ctx context.Context, signals <-chan os.Signal) *watch {
	work, cancelWork := context.WithCancelCause(ctx)
	admit, cancelAdmit := context.WithCancel(work)
	w := &watch{admit: admit, work: work}
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-signals:
				if w.interrupted.Add(1) == 1 {
					cancelAdmit()
				} else {
					cancelWork(errInterrupted)
				}
			case <-done:
				return
			}
		}
	}()
	w.stop = func() {
		close(done)
		<-ended
		cancelAdmit()
		cancelWork(nil)
	}
	return w
}
