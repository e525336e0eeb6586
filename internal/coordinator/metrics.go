package coordinator

import (
	"context"
	"fmt"
	"maps"
	"math"
	"runtime/metrics"
	"time"

	"github.com/uadt-train/uadt-train/internal/telemetry"
	"github.com/uadt-train/uadt-train/reward"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
)

// record writes ledger and metrics of a step and tells the watchers.
func (r *ring) record(ctx context.Context, l *learned) error {
	n := l.batch.step
	rows, arrays := r.ledger(l)
	err := bounded(ctx, await{fmt.Sprintf("ledger of step %d, write", r.global(n)), r.o.Limits.Store, "the disk of the run directory"},
		func(ctx context.Context) error { return r.o.Parts.Store.PutLedger(ctx, r.global(n), rows, arrays) })
	if err != nil {
		return err
	}
	values := r.values(l)
	now := r.now()
	line := map[string]any{"step": int64(r.global(n)), "stage": r.stage.Name, "policy_version": int64(r.base + n),
		"time": now.UTC().Format(time.RFC3339Nano), "entropy/estimator": string(l.shaped.Estimator)}
	if err := r.putMetrics(ctx, "step", n, line, values); err != nil {
		return err
	}
	r.emit(telemetry.StepDone{Stage: r.stage.Name, Step: n, Global: r.global(n), Metrics: values, Time: now})
	return nil
}

// putMetrics writes one line: the finite ones of values, and line.
func (r *ring) putMetrics(ctx context.Context, kind string, n int, line map[string]any, values telemetry.Metrics) error {
	return putMetrics(ctx, r.o, kind, r.global(n), join(line, values))
}

func putMetrics(ctx context.Context, o Options, kind string, step int, line map[string]any) error {
	return bounded(ctx, await{fmt.Sprintf("metrics of step %d, write", step), o.Limits.Store, "the disk of the run directory"},
		func(ctx context.Context) error { return o.Parts.Store.PutMetrics(ctx, kind, step, line) })
}

// join adds the finite ones of values to line; what is not finite is absent.
func join(line map[string]any, values telemetry.Metrics) map[string]any {
	for name, x := range values {
		if math.IsNaN(x) || math.IsInf(x, 0) {
			delete(values, name)
			continue
		}
		line[name] = x
	}
	return line
}

// values returns every number of a step by its public name.
func (r *ring) values(l *learned) telemetry.Metrics {
	v := telemetry.Metrics{}
	maps.Copy(v, l.shaped.Metrics)
	r.rewardValues(v, l)
	r.rolloutValues(v, l)
	trainerValues(v, l.updates, r.start.reference != nil)
	for phase, seconds := range l.seconds {
		v["seconds/"+phase] = seconds
	}
	v["seconds/step"] = r.since().Seconds()
	if taken := r.saver.took(); taken > 0 {
		v["seconds/checkpoint"] = taken
	}
	v["memory/rss_bytes"] = resident()
	return v
}

func (r *ring) rewardValues(v telemetry.Metrics, l *learned) {
	var totals, format, answer, right, wrong, distinct []float64
	missing, traces := 0, 0
	for _, e := range l.examples() {
		answers := map[string]bool{}
		for i, s := range e.Scores {
			traces++
			if s.Missing {
				missing++
				continue
			}
			totals = append(totals, s.Total)
			format = part(format, s, reward.FormatPart)
			answer = part(answer, s, reward.AnswerPart)
			length := float64(len(e.scored.group.Traces[i].Tokens))
			if s.Correct {
				right = append(right, length)
			} else {
				wrong = append(wrong, length)
			}
			if s.Answer.Extracted != "" {
				answers[s.Answer.Extracted] = true
			}
		}
		distinct = append(distinct, float64(len(answers)))
	}
	put(v, "reward/mean", totals)
	if len(totals) > 1 {
		v["reward/std"] = spread(totals)
	}
	put(v, "reward/format", format)
	put(v, "reward/answer", answer)
	put(v, "length/right", right)
	put(v, "length/wrong", wrong)
	put(v, "answers/distinct", distinct)
	v["reward/missing"] = float64(missing) / float64(traces)
	if len(totals) > 0 {
		v["accuracy/train"] = float64(len(right)) / float64(len(totals))
	}
}

// part appends the value of the part called name, if s has it.
func part(values []float64, s reward.Score, name string) []float64 {
	if p, ok := s.Part(name); ok && !p.Missing {
		return append(values, p.Value)
	}
	return values
}

// put sets name to the mean of values, and leaves it absent when there are none.
func put(v telemetry.Metrics, name string, values []float64) {
	if len(values) > 0 {
		v[name] = mean(values)
	}
}

func (r *ring) rolloutValues(v telemetry.Metrics, l *learned) {
	total, longest, truncated, traces := 0, 0, 0, 0
	for _, e := range l.examples() {
		for _, t := range e.scored.group.Traces {
			traces++
			total += len(t.Tokens)
			longest = max(longest, len(t.Tokens))
			if t.Finish == rollout.FinishLength {
				truncated++
			}
		}
	}
	v["rollout/tokens"] = float64(total)
	v["rollout/length_mean"] = float64(total) / float64(traces)
	v["rollout/length_max"] = float64(longest)
	v["rollout/truncated_share"] = float64(truncated) / float64(traces)
	v["rollout/staleness_mean"] = float64(l.batch.step - 1 - l.batch.version)
	v["rollout/admitted"] = float64(l.batch.admitted)
	v["rollout/dropped"] = float64(len(l.batch.drops) + len(l.refused))
	v["rollout/trained"] = float64(len(l.examples()))
	if seconds := l.batch.timing.rollout.Seconds(); seconds > 0 {
		v["rollout/seconds"] = seconds
		v["rollout/tokens_per_second"] = float64(total) / seconds
	}
}

// trainerValues averages the reports of the applied updates, weighted by their
// tokens; a norm, a rate and a peak are of the last or the largest.
func trainerValues(v telemetry.Metrics, updates []*update, reference bool) {
	weights, seconds, peak := 0.0, 0.0, int64(0)
	sums := telemetry.Metrics{}
	for _, u := range updates {
		v["lr"] = u.rate
		if u.bad != nil {
			continue
		}
		p, w := u.report, float64(max(u.report.Tokens, 1))
		weights += w
		seconds += p.Seconds
		peak = max(peak, p.PeakBytes)
		for name, x := range reportValues(p, reference) {
			sums[name] += w * x
		}
		v["rollout_gap/w_max"] = math.Max(v["rollout_gap/w_max"], p.Gap.WMax)
	}
	if weights == 0 {
		return
	}
	for name, sum := range sums {
		v[name] = sum / weights
	}
	if seconds > 0 {
		v["trainer/seconds"] = seconds
		v["trainer/tokens_per_second"] = weights / seconds
	}
	if peak > 0 {
		v["trainer/peak_bytes"] = float64(peak)
	}
}

func reportValues(p trainer.Report, reference bool) telemetry.Metrics {
	v := telemetry.Metrics{
		"loss/total": p.Loss, "loss/policy": p.PolicyLoss,
		"kl/behaviour": p.KLBehaviour, "grad/norm": p.GradNorm,
		"clip/low": p.ClipLow, "clip/high": p.ClipHigh, "clip/dual": p.ClipDual,
		"rollout_gap/w_mean": p.Gap.WMean, "rollout_gap/truncated": p.Gap.Truncated, "rollout_gap/kl": p.Gap.KL,
	}
	if reference {
		v["loss/kl"], v["kl/reference"] = p.KLLoss, p.KLReference
	}
	return v
}

// resident estimates the memory that the process holds: what the Go runtime
// has mapped and not given back, in bytes.
func resident() float64 {
	samples := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(samples)
	if samples[0].Value.Kind() != metrics.KindUint64 || samples[1].Value.Kind() != metrics.KindUint64 {
		return math.NaN()
	}
	return float64(samples[0].Value.Uint64() - samples[1].Value.Uint64())
}
