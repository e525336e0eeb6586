//go:build !amd64 || purego

package kernel

func panel(c Call) { panelGo(c) }

func expSub(dst, x []float32, scale, shift float32) { expSubGo(dst, x, scale, shift) }

func siluMul(gate, up []float32) { siluMulGo(gate, up) }

func softmax(x []float32, scale float32) float32 { return softmaxGo(x, scale) }
