package uadt

import "math"

// RuleInput is what a rule sees of one group: one element a trace, dropped
// traces included (their A, Omega and H are 0).
type RuleInput struct {
	Lambda  float64   // schedule read at this shaping step
	Kappa   float64   // 0 is unlimited
	A       []float64 // [G] group-normalised advantages
	Omega   []float64 // [G] in (-1, 1)
	H       []float64 // [G] nats
	Correct []bool    // [G]
	Length  []int     // [G] sampled tokens
}

// Rule is one entry of the registry.
type Rule struct {
	Name string
	Doc  string // formula and source, one line
	// ZeroSafe says that the shaper returns 0 for zero-variance groups, missing
	// rewards and dropped traces whatever the rule answers. Only a rule that is
	// meant to give such groups a gradient has it false.
	ZeroSafe bool
	// Shape writes A' of the group into out, [G].
	Shape func(in RuleInput, out []float64)
}

// Rules returns the registry in a fixed order. Rule none is UADT switched off;
// c1 to c4 are reconstructions, not the paper's formula.
//
// For 0 <= lambda < 1, c1 and c2 keep every sign and every zero, because
// |omega| < 1. No rule but none keeps a group's mean at zero: c1 shifts it by
// lambda*mean(omega*|A|).
func Rules() []Rule {
	return []Rule{
		{Name: "none", Doc: "A' = A", ZeroSafe: true, Shape: each(func(a, _, _, _ float64) float64 { return a })},
		{Name: "c1", Doc: "sign-aware: A' = A + lambda*omega*|A| (reconstruction)", ZeroSafe: true, Shape: each(signAware)},
		{Name: "c2", Doc: "magnitude: A' = A*(1 + lambda*omega) (reconstruction)", ZeroSafe: true, Shape: each(magnitude)},
		{Name: "c3", Doc: "additive: A' = A + clip(lambda*omega, -|A|/kappa, |A|/kappa) (reconstruction)", ZeroSafe: true, Shape: each(additive)},
		{Name: "c4", Doc: "inverse control: c1 with -omega (reconstruction)", ZeroSafe: true, Shape: each(inverse)},
	}
}

// each lifts a rule of one trace to a rule of a group.
func each(rule func(a, omega, lambda, kappa float64) float64) func(RuleInput, []float64) {
	return func(in RuleInput, out []float64) {
		for i, a := range in.A {
			out[i] = rule(a, in.Omega[i], in.Lambda, in.Kappa)
		}
	}
}

func signAware(a, omega, lambda, _ float64) float64 { return a + lambda*omega*math.Abs(a) }

func magnitude(a, omega, lambda, _ float64) float64 { return a * (1 + lambda*omega) }

func additive(a, omega, lambda, kappa float64) float64 {
	shift := lambda * omega
	if kappa > 0 {
		bound := math.Abs(a) / kappa
		shift = math.Max(-bound, math.Min(bound, shift))
	}
	return a + shift
}

func inverse(a, omega, lambda, kappa float64) float64 { return signAware(a, -omega, lambda, kappa) }

// ruleNamed finds a rule of the registry, nil when there is none of that name.
func ruleNamed(name string) *Rule {
	for _, r := range Rules() {
		if r.Name == name {
			return &r
		}
	}
	return nil
}

func ruleNames() []string {
	var names []string
	for _, r := range Rules() {
		names = append(names, r.Name)
	}
	return names
}
