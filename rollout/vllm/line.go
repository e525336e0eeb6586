package vllm

import (
	"cmp"
	"slices"

	"github.com/uadt-train/uadt-train/rollout"
)

// ticket is a place in the line of jobs that wait for a server. A job that was
// on a server before goes first: others of its group's step wait for it already.
type ticket struct {
	policy rollout.Policy
	fresh  bool   // never was on a server
	number uint64 // in order of arrival
	// progress marks that the job goes forward.
	progress func()
}

func (t *ticket) compare(other *ticket) int {
	if t.fresh != other.fresh {
		if other.fresh {
			return -1
		}
		return 1
	}
	return cmp.Compare(t.number, other.number)
}

// enter puts a job in line. It must be called under the lock, as leave and first
// must.
func (f *Fleet) enter(policy rollout.Policy, fresh bool, progress func()) *ticket {
	f.tickets++
	t := &ticket{policy, fresh, f.tickets, progress}
	at, _ := slices.BinarySearchFunc(f.line, t, (*ticket).compare)
	f.line = slices.Insert(f.line, at, t)
	return t
}

// leave takes a ticket out of the line.
func (f *Fleet) leave(t *ticket) {
	if at, found := slices.BinarySearchFunc(f.line, t, (*ticket).compare); found {
		f.line = slices.Delete(f.line, at, at+1)
	}
}

// first says whether t is the first in line of those that want its policy.
func (f *Fleet) first(t *ticket) bool {
	for _, other := range f.line {
		if other.policy == t.policy {
			return other == t
		}
	}
	return false
}
