//go:build amd64 && !purego

#include "textflag.h"

// Constants of exp32 in exp.go, one float32 each.
DATA expk<>+0(SB)/4, $0xc2ae0000  // -87
DATA expk<>+4(SB)/4, $0x42b00000  // 88
DATA expk<>+8(SB)/4, $0x3fb8aa3b  // log2(e)
DATA expk<>+12(SB)/4, $0x3f318000 // ln 2, high part
DATA expk<>+16(SB)/4, $0xb95e8083 // ln 2, low part
DATA expk<>+20(SB)/4, $0x39506967 // c0
DATA expk<>+24(SB)/4, $0x3ab743ce // c1
DATA expk<>+28(SB)/4, $0x3c088908 // c2
DATA expk<>+32(SB)/4, $0x3d2aa9c1 // c3
DATA expk<>+36(SB)/4, $0x3e2aaaaa // c4
DATA expk<>+40(SB)/4, $0x3f000000 // c5
DATA expk<>+44(SB)/4, $0x3f800000 // 1
DATA expk<>+48(SB)/4, $0x80000000 // sign
GLOBL expk<>(SB), RODATA|NOPTR, $52

#define LOADCONSTS \
	VBROADCASTSS expk<>+8(SB), Y8   \
	VBROADCASTSS expk<>+12(SB), Y9  \
	VBROADCASTSS expk<>+16(SB), Y10 \
	VBROADCASTSS expk<>+44(SB), Y11

// EXP replaces Y0 by exp(Y0), 0 where Y0 < -87. Uses Y1 to Y6.
#define EXP \
	VBROADCASTSS expk<>+0(SB), Y1   \
	VCMPPS $0x0d, Y1, Y0, Y6        \ // Y0 >= -87, false for NaN
	VMAXPS Y1, Y0, Y0               \
	VBROADCASTSS expk<>+4(SB), Y1   \
	VMINPS Y1, Y0, Y0               \
	VMULPS Y8, Y0, Y1               \
	VROUNDPS $0, Y1, Y1             \ // n, to nearest even
	VFNMADD231PS Y9, Y1, Y0         \
	VFNMADD231PS Y10, Y1, Y0        \ // r
	VBROADCASTSS expk<>+20(SB), Y2  \
	VBROADCASTSS expk<>+24(SB), Y3  \
	VFMADD213PS Y3, Y0, Y2          \
	VBROADCASTSS expk<>+28(SB), Y3  \
	VFMADD213PS Y3, Y0, Y2          \
	VBROADCASTSS expk<>+32(SB), Y3  \
	VFMADD213PS Y3, Y0, Y2          \
	VBROADCASTSS expk<>+36(SB), Y3  \
	VFMADD213PS Y3, Y0, Y2          \
	VBROADCASTSS expk<>+40(SB), Y3  \
	VFMADD213PS Y3, Y0, Y2          \
	VMULPS Y0, Y0, Y4               \
	VFMADD213PS Y0, Y4, Y2          \
	VADDPS Y11, Y2, Y2              \
	VCVTPS2DQ Y1, Y1                \
	VPSLLD $23, Y1, Y1              \
	VPADDD Y1, Y2, Y2               \
	VANDPS Y6, Y2, Y0

// func expSubAVX2(dst, x *float32, n int, scale, shift float32)
TEXT ·expSubAVX2(SB), NOSPLIT, $0-32
	MOVQ dst+0(FP), DI
	MOVQ x+8(FP), SI
	MOVQ n+16(FP), CX
	VBROADCASTSS scale+24(FP), Y14
	VBROADCASTSS shift+28(FP), Y15
	LOADCONSTS

expLoop:
	VMOVUPS (SI), Y0
	VFMSUB213PS Y15, Y14, Y0
	EXP
	VMOVUPS Y0, (DI)
	ADDQ $32, SI
	ADDQ $32, DI
	SUBQ $8, CX
	JG   expLoop
	VZEROUPPER
	RET

// func siluMulAVX2(gate, up *float32, n int)
TEXT ·siluMulAVX2(SB), NOSPLIT, $0-24
	MOVQ gate+0(FP), DI
	MOVQ up+8(FP), SI
	MOVQ n+16(FP), CX
	VBROADCASTSS expk<>+48(SB), Y15
	LOADCONSTS

siluLoop:
	VMOVUPS (DI), Y7
	VXORPS Y15, Y7, Y0
	EXP
	VADDPS Y11, Y0, Y0
	VDIVPS Y0, Y7, Y7
	VMULPS (SI), Y7, Y7
	VMOVUPS Y7, (DI)
	ADDQ $32, SI
	ADDQ $32, DI
	SUBQ $8, CX
	JG   siluLoop
	VZEROUPPER
	RET

// func softmaxAVX2(x *float32, n int, scale float32) (sum float32)
TEXT ·softmaxAVX2(SB), NOSPLIT, $0-28
	MOVQ x+0(FP), DI
	MOVQ n+8(FP), CX
	MOVQ DI, SI
	MOVQ CX, DX
	VMOVUPS (SI), Y0
	VMOVUPS 32(SI), Y1

maxLoop:
	VMAXPS (SI), Y0, Y0
	VMAXPS 32(SI), Y1, Y1
	ADDQ $64, SI
	SUBQ $16, DX
	JG   maxLoop
	VMAXPS Y1, Y0, Y0
	VEXTRACTF128 $1, Y0, X1
	VMAXPS X1, X0, X0
	VPERMILPS $0x4e, X0, X1
	VMAXPS X1, X0, X0
	VPERMILPS $0xb1, X0, X1
	VMAXPS X1, X0, X0
	VBROADCASTSS X0, Y15
	VBROADCASTSS scale+16(FP), Y14
	VMULPS Y14, Y15, Y15

	// An all -Inf row has shift -Inf: replace it by 0, or -Inf - -Inf is NaN.
	VSUBPS Y15, Y15, Y1
	VCMPPS $0x00, Y1, Y1, Y1
	VANDPS Y1, Y15, Y15
	LOADCONSTS
	VXORPS Y12, Y12, Y12
	VXORPS Y13, Y13, Y13

softLoop:
	VMOVUPS (DI), Y0
	VFMSUB213PS Y15, Y14, Y0
	EXP
	VMOVUPS Y0, (DI)
	VADDPS Y0, Y12, Y12
	VMOVUPS 32(DI), Y0
	VFMSUB213PS Y15, Y14, Y0
	EXP
	VMOVUPS Y0, 32(DI)
	VADDPS Y0, Y13, Y13
	ADDQ $64, DI
	SUBQ $16, CX
	JG   softLoop

	VADDPS Y13, Y12, Y12
	VEXTRACTF128 $1, Y12, X0
	VADDPS X0, X12, X0
	VPERMILPS $0x4e, X0, X1
	VADDPS X1, X0, X0
	VPERMILPS $0xb1, X0, X1
	VADDPS X1, X0, X0
	VMOVSS X0, sum+24(FP)
	VZEROUPPER
	RET
