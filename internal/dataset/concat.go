package dataset

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sort"

	"github.com/uadt-train/uadt-train/rollout"
)

// concat is several lists one after the other.
type concat struct {
	lists []Questions
	ends  []int // ends[k] is the number of questions in lists 0 to k
}

// Concat joins lists into one; ids stay distinct if the lists' names are.
func Concat(lists ...Questions) Questions {
	c := &concat{lists: lists}
	total := 0
	for _, l := range lists {
		total += l.Len()
		c.ends = append(c.ends, total)
	}
	return c
}

// Len implements Questions.
func (c *concat) Len() int {
	if len(c.ends) == 0 {
		return 0
	}
	return c.ends[len(c.ends)-1]
}

// Question implements Questions.
func (c *concat) Question(ctx context.Context, i int) (rollout.Question, error) {
	k := sort.SearchInts(c.ends, i+1)
	if i < 0 || k == len(c.lists) {
		return rollout.Question{}, fmt.Errorf("dataset: question %d of %d", i, c.Len())
	}
	if k > 0 {
		i -= c.ends[k-1]
	}
	return c.lists[k].Question(ctx, i)
}

// Digest is the SHA-256 over the digests of the lists in order.
func (c *concat) Digest() string {
	h := sha256.New()
	for _, l := range c.lists {
		fmt.Fprintln(h, l.Digest())
	}
	return hex.EncodeToString(h.Sum(nil))
}
