package coordinator

import (
	"github.com/uadt-train/uadt-train/uadt"
)

// ledger returns one row a trace, in job and seed order, lost traces included,
// and the per-token arrays of the same rows.
func (r *ring) ledger(l *learned) ([]map[string]any, map[string][]float32) {
	examples := l.examples()
	values := l.shaped.Values()
	var rows []map[string]any
	arrays := map[string][]float32{"offsets": {0}}
	tokens := 0
	for q, e := range examples {
		group := l.shaped.Groups[q]
		position := make([]int, len(e.Scores)) // of a trace among the kept ones, -1 when lost
		for i := range position {
			position[i] = -1
		}
		for i, k := range e.kept {
			position[k] = i
		}
		for k := range e.Scores {
			row := r.row(l, e, k)
			addShaped(row, l.shaped, group, k)
			rows = append(rows, row)
			if i := position[k]; i >= 0 {
				r.addTokens(arrays, e, i, values[q][k])
				tokens += len(e.group.Traces[i].Tokens)
			}
			arrays["offsets"] = append(arrays["offsets"], float32(tokens))
		}
	}
	return rows, arrays
}

// row holds the columns of trace k of e that do not come from the shaper.
func (r *ring) row(l *learned, e *example, k int) map[string]any {
	q, g, t, s := e.Job.Question, e.scored.group, e.scored.group.Traces[k], e.Scores[k]
	row := map[string]any{
		"run": r.o.Run, "incarnation": int64(r.o.Incarnation), "stage": r.stage.Name,
		"step": int64(r.global(l.batch.step)), "epoch": int64(e.Job.Epoch), "job": string(e.Job.ID), "trace": int64(k),
		"question": q.ID, "type": string(q.Kind), "modality": q.Modality, "level": string(q.Level), "split": q.Split, "gold": q.Gold,
		"answer": s.Answer.Extracted, "answer_reason": string(s.Answer.Reason), "answer_f1": s.Answer.F1,
		"finish": t.Finish.String(), "missing": s.Missing, "correct": s.Correct,
		"temperature": e.Job.Sampling.Temperature,
		"length":      int64(len(t.Tokens)), "prompt_tokens": int64(len(g.PromptTokens)), "logprob_sum": sum(t.Logprobs),
		"policy_sent": int64(g.PolicySent.Version), "policy_received": int64(g.PolicyReceived.Version), "policy_scored": int64(r.base + l.batch.step - 1),
		"seed": g.Seed + int64(k), "server": g.Server, "text": t.Text,
	}
	if !s.Missing {
		row["reward"] = s.Total
	}
	for _, p := range s.Parts {
		if !p.Missing {
			row["reward/"+p.Name] = p.Value
		}
	}
	var images []string
	for _, image := range q.Images() {
		images = append(images, image.Digest)
	}
	row["images"] = images
	return row
}

// addShaped adds what the shaper computed for trace k of a group.
func addShaped(row map[string]any, s uadt.Result, g uadt.GroupResult, k int) {
	t := g.Traces[k]
	row["group_mean"], row["group_std"], row["zero_variance"] = g.Mean, g.Std, g.ZeroVariance
	row["dropped"] = string(t.Dropped)
	row["estimator"], row["rule"] = string(s.Estimator), s.Rule
	row["tau"], row["sigma"] = s.Tau, s.Sigma
	row["lambda"], row["gain"], row["gamma"] = s.Lambda, s.Gain, s.Gamma
	if t.HasH {
		row["entropy"] = t.H
	}
	if t.Counted {
		row["u"], row["omega"] = t.U, t.Omega
	}
	row["advantage"], row["advantage_shaped"] = t.A, t.Shaped
	if n := len(t.TokenShaped); n > 0 {
		low, high, total := t.TokenShaped[0], t.TokenShaped[0], 0.0
		for _, a := range t.TokenShaped {
			low, high, total = min(low, a), max(high, a), total+a
		}
		row["advantage_shaped"] = total / float64(n)
		row["advantage_shaped_min"], row["advantage_shaped_max"] = low, high
	}
	for i, name := range s.ShadowRules {
		row["advantage_shaped/"+name] = t.Shadow[i]
	}
}

// addTokens appends the per-token values of kept trace i.
func (r *ring) addTokens(arrays map[string][]float32, e *example, i int, advantages []float32) {
	arrays["entropy"] = append(arrays["entropy"], r.signal(e, i)...)
	if e.old != nil {
		arrays["old_logprobs"] = append(arrays["old_logprobs"], e.old[i]...)
	}
	if e.reference != nil {
		arrays["reference_logprobs"] = append(arrays["reference_logprobs"], e.reference[i]...)
	}
	if n := len(e.group.Traces[i].Tokens); len(advantages) == n {
		arrays["advantages"] = append(arrays["advantages"], advantages...)
	} else {
		for range n {
			arrays["advantages"] = append(arrays["advantages"], advantages[0])
		}
	}
}

func sum(values []float32) float64 {
	total := 0.0
	for _, x := range values {
		total += float64(x)
	}
	return total
}
