package evaluate

// passAtK is the chance that at least one of k responses is right, drawn
// without replacement from n of which right are: 1 - C(n-right, k)/C(n, k)
// (arXiv 2107.03374, eq. 1), as a product so that nothing overflows.
func passAtK(n, right, k int) float64 {
	if n-right < k {
		return 1
	}
	miss := 1.0
	for i := range k {
		miss *= float64(n-right-i) / float64(n-i)
	}
	return 1 - miss
}

// ks lists the k for which pass@k is reported of n responses: powers of two, and
// n itself.
func ks(n int) []int {
	var all []int
	for k := 1; k < n; k *= 2 {
		all = append(all, k)
	}
	return append(all, n)
}
