package uadt

import (
	"fmt"
	"math"
)

// The names of the alarms, in the order in which they are raised.
const (
	AlarmKappaUnlimited = "kappa_unlimited"      // c3 without a bound can shift a trace of small |A| past 0
	AlarmLambdaLarge    = "lambda_large"         // from 1 on c1 and c2 no longer keep signs
	AlarmNoEntropy      = "no_entropy"           // no trace counted: omega is 0 everywhere
	AlarmTauDrift       = "tau_drift"            // the threshold lags behind the policy
	AlarmFloorActive    = "floor_active"         // the floor stands in for tau or sigma
	AlarmSaturated      = "omega_saturated"      // tanh no longer tells traces apart
	AlarmSignFlips      = "sign_flips"           // shaping turned a reward into a punishment or back
	AlarmMassMoved      = "mass_moved"           // shaping is most of the signal
	AlarmCommonShift    = "common_shift"         // shaping acts as a baseline rather than a contrast
	AlarmZeroVariance   = "zero_variance_share"  // most of the batch teaches nothing
	AlarmGroupSize      = "effective_group_size" // shaping leaves few traces to carry their group
	AlarmCorrLength     = "corr_length_within"   // H is mostly length
	AlarmCorrCorrect    = "corr_correct_within"  // H is mostly correctness
)

// Limits of the alarms. They are ours: points at which a reader should look,
// not points at which anything is proven wrong.
const (
	limitDrift        = 0.5 // |mu - tau| relative to tau: half the range of u under rel
	limitSaturated    = 0.5
	limitMassMoved    = 0.5
	limitCommonShift  = 0.1 // of an advantage whose SD within a group is about 1
	limitZeroVariance = 0.5
	limitGroupShare   = 0.5 // effective size of A' over that of A
	limitCorrelation  = 0.5
)

// alarms compares the metrics with the limits.
func (w *work) alarms() []Alarm {
	var out []Alarm
	raise := func(on bool, name string, value, limit float64, message string) {
		if on {
			out = append(out, Alarm{Name: name, Value: value, Limit: limit, Message: message})
		}
	}
	o, r := w.setup.Options, w.result
	over := func(metric, name string, limit float64, message string) {
		if value, ok := r.Metrics[metric]; ok {
			raise(math.Abs(value) > limit, name, value, limit, message)
		}
	}
	raise(o.Kappa == 0 && o.Rule == "c3", AlarmKappaUnlimited, 0, 0, "rule c3 has no bound: uadt.kappa is 0")
	raise(r.Lambda >= 1 && o.Rule != "none", AlarmLambdaLarge, r.Lambda, 1, "lambda of 1 or more: signs are not kept")
	raise(r.Counted == 0, AlarmNoEntropy, 0, 1, "no trace counted towards tau: omega is 0 for all")
	if r.Counted > 0 {
		scale := math.Max(r.Tau, o.Floor)
		raise(math.Abs(r.Mu-r.Tau) > limitDrift*scale, AlarmTauDrift, r.Mu-r.Tau, limitDrift*scale,
			fmt.Sprintf("mean entropy %.4g has left the threshold %.4g behind", r.Mu, r.Tau))
	}
	denominator := r.Tau
	if o.Norm == ZScore {
		denominator = r.Sigma
	}
	raise(w.floor, AlarmFloorActive, denominator, o.Floor, "uadt.floor stands in for tau or sigma")
	over("uadt/omega_saturated", AlarmSaturated, limitSaturated, "most factors are saturated: lower uadt.gain")
	over("uadt/sign_flips", AlarmSignFlips, 0, "shaping turned the sign of some advantages")
	over("uadt/mass_moved", AlarmMassMoved, limitMassMoved, "shaping moved more than half of the advantage mass")
	over("uadt/common_shift", AlarmCommonShift, limitCommonShift, "shaping shifts the whole batch: it acts as a baseline")
	over("uadt/zero_variance_share", AlarmZeroVariance, limitZeroVariance, "most groups have zero variance")
	if size, ok := r.Metrics["uadt/effective_group_size"]; ok {
		limit := limitGroupShare * r.Metrics["uadt/effective_group_size_raw"]
		raise(size < limit, AlarmGroupSize, size, limit, "after shaping few traces carry their group")
	}
	over("uadt/corr_length_within", AlarmCorrLength, limitCorrelation, "entropy follows length within groups")
	over("uadt/corr_correct_within", AlarmCorrCorrect, limitCorrelation, "entropy follows correctness within groups")
	return out
}
