package uadt_test

import (
	"encoding/json"
	"fmt"

	"github.com/uadt-train/uadt-train/uadt"
)

// One question with four traces: two right, two wrong, each with a certain and
// an uncertain one. Rule c1 of the reconstruction rewards the uncertain right
// answer more and punishes the uncertain wrong one less.
func ExampleShaper_Shape() {
	setup := uadt.Setup{
		Options:    uadt.DefaultOptions(),
		Advantage:  uadt.DefaultAdvantageOptions(),
		StageSteps: 60,
	}
	shaper, err := uadt.NewShaper(setup)
	if err != nil {
		fmt.Println(err)
		return
	}
	result, err := shaper.Shape(uadt.Batch{Groups: []uadt.Group{{ID: "q1", Traces: []uadt.Trace{
		{Reward: 1, Correct: true, Length: 40, H: 0.2},
		{Reward: 1, Correct: true, Length: 90, H: 0.6},
		{Reward: 0, Length: 35, H: 0.2},
		{Reward: 0, Length: 80, H: 0.6},
	}}}})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("tau %.2f\n", result.Tau)
	for _, t := range result.Groups[0].Traces {
		fmt.Printf("A %+.3f  omega %+.3f  A' %+.3f\n", t.A, t.Omega, t.Shaped)
	}
	// Output:
	// tau 0.40
	// A +0.866  omega -0.462  A' +0.666
	// A +0.866  omega +0.462  A' +1.066
	// A -0.866  omega -0.462  A' -1.066
	// A -0.866  omega +0.462  A' -0.666
}

// The state is part of a checkpoint and survives JSON to the bit.
func ExampleShaper_State() {
	shaper, err := uadt.NewShaper(uadt.Setup{Options: uadt.DefaultOptions(), Advantage: uadt.DefaultAdvantageOptions(), StageSteps: 60})
	if err != nil {
		fmt.Println(err)
		return
	}
	saved, err := json.Marshal(shaper.State())
	fmt.Println(string(saved), err)
	// Output:
	// {"version":1,"step":0,"tau":0,"sigma":0,"seeded":false,"estimator":"exact"} <nil>
}

func ExampleTokenEntropy() {
	h, err := uadt.TokenEntropy([]float64{2, 1, 0, -1}, 1)
	fmt.Printf("%.9f %v\n", h, err)
	// Output: 0.947536964 <nil>
}
