//go:build !amd64 || purego

package matmul

const kernelCols = 16

func kernel(c, a, b View, add bool) { kernelGo(c, a, b, add) }
