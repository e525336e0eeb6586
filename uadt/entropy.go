package uadt

import (
	"fmt"
	"strconv"
	"strings"
)

// Estimator names how H is estimated: "exact", "topk<k>" or "surprisal".
// Estimators are never mixed in one run.
type Estimator string

// The estimators without a parameter; TopK makes the third kind.
const (
	Exact     Estimator = "exact"     // full vocabulary, from the trainer's score
	Surprisal Estimator = "surprisal" // mean of -log p of the sampled tokens
)

// TopK names the estimator of the k largest log-probabilities and a tail bucket.
func TopK(k int) Estimator { return Estimator("topk" + strconv.Itoa(k)) }

// K returns k of a topk estimator, and 0 of any other.
func (e Estimator) K() int {
	digits, ok := strings.CutPrefix(string(e), "topk")
	if !ok {
		return 0
	}
	k, err := strconv.Atoi(digits)
	if err != nil || k < 1 {
		return 0
	}
	return k
}

// ParseEstimator checks the name of an estimator.
func ParseEstimator(name string) (Estimator, error) {
	e := Estimator(name)
	if e == Exact || e == Surprisal || (e.K() > 0 && e == TopK(e.K())) {
		return e, nil
	}
	return "", fmt.Errorf("entropy estimator %q: want exact, surprisal, or topk and k, such as topk20", name)
}
