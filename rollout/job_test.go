package rollout_test

import (
	"testing"

	"github.com/uadt-train/uadt-train/rollout"
)

// In order: the incarnation decides before the version does, and the digest
// never. A fence that had it the other way would let a dead coordinator win.
func TestPoliciesAreOrdered(t *testing.T) {
	order := []rollout.Policy{
		{Incarnation: 1, Version: 0}, {Incarnation: 1, Version: 9}, {Incarnation: 2, Version: 0}, {Incarnation: 2, Version: 3}, {Incarnation: 10, Version: 1},
	}
	for i, p := range order {
		for j, q := range order {
			q.Digest = "ff"
			if got := p.Older(q); got != (i < j) {
				t.Errorf("%s older than %s: %v", p, q, got)
			}
		}
	}
}
