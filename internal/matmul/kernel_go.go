package matmul

// kernelGo is the kernel in Go, for machines without the vectors and for tests.
func kernelGo(c, a, b View, add bool) {
	for i := range c.Rows {
		to := c.Data[i*c.Row : i*c.Row+c.Cols]
		if !add {
			clear(to)
		}
		for k := range a.Cols {
			x := a.Data[i*a.Row+k*a.Col]
			from := b.Data[k*b.Row : k*b.Row+c.Cols]
			for j := range to {
				to[j] = fma(x, from[j], to[j])
			}
		}
	}
}
