package experiments

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/uadt-train/uadt-train/internal/safetensors"
	"github.com/uadt-train/uadt-train/rollout"
)

// Names of the tensors of a rollout file. Traces of all groups lie one after
// the other; "offsets" say where each begins and the last one ends.
const (
	tensorTokens   = "tokens"         // I32, sampled tokens
	tensorLogprobs = "logprobs"       // F32
	tensorTopK     = "topk_entropy"   // F32, of the traces that have it
	tensorOffsets  = "offsets"        // I64 [traces+1] into tokens
	tensorFinish   = "finish"         // U8 [traces]
	tensorPrompts  = "prompt_tokens"  // I32
	tensorPrompt   = "prompt_offsets" // I64 [groups+1] into prompt_tokens
	tensorGroups   = "groups_json"    // U8, []groupDocument
	tensorMeta     = "meta_json"      // U8, the caller's document
)

// groupDocument is what a group holds beside tensors.
type groupDocument struct {
	Job        rollout.JobID   `json:"job"`
	Question   string          `json:"question"`
	Sent       rollout.Policy  `json:"policy_sent"`
	Received   rollout.Policy  `json:"policy_received"`
	Server     string          `json:"server"`
	Seed       int64           `json:"seed"`
	Started    time.Time       `json:"started"`
	Finished   time.Time       `json:"finished"`
	Traces     []traceDocument `json:"traces"`
	PromptNone bool            `json:"prompt_none,omitempty"` // nil rather than empty
}

// traceDocument is what a trace holds beside tensors. The flags keep nil apart
// from empty, so that a group comes back exactly as it was.
type traceDocument struct {
	Text         string `json:"text"`
	TokensNone   bool   `json:"tokens_none,omitempty"`
	Logprobs     bool   `json:"logprobs"`
	TopK         bool   `json:"topk"`
	TextIsBinary []byte `json:"text_bytes,omitempty"` // where the text is not UTF-8
}

// encodeRollout lays out a batch.
func encodeRollout(meta []byte, groups []rollout.Group) (safetensors.File, error) {
	var tokens, prompts []int32
	var logprobs, topk []float32
	var finish []byte
	offsets, promptOffsets := []int64{0}, []int64{0}
	documents := make([]groupDocument, 0, len(groups))
	for q, g := range groups {
		d := groupDocument{Job: g.Job, Question: g.QuestionID, Sent: g.PolicySent, Received: g.PolicyReceived, Server: g.Server,
			Seed: g.Seed, Started: g.Started, Finished: g.Finished, PromptNone: g.PromptTokens == nil}
		prompts = append(prompts, g.PromptTokens...)
		promptOffsets = append(promptOffsets, int64(len(prompts)))
		for i, t := range g.Traces {
			if (t.Logprobs != nil && len(t.Logprobs) != len(t.Tokens)) || (t.TopKEntropy != nil && len(t.TopKEntropy) != len(t.Tokens)) {
				return safetensors.File{}, fmt.Errorf("group %d (%s) trace %d: %d tokens, %d log-probabilities, %d entropies",
					q, g.Job, i, len(t.Tokens), len(t.Logprobs), len(t.TopKEntropy))
			}
			tokens = append(tokens, t.Tokens...)
			offsets = append(offsets, int64(len(tokens)))
			logprobs, topk = append(logprobs, t.Logprobs...), append(topk, t.TopKEntropy...)
			finish = append(finish, byte(t.Finish))
			d.Traces = append(d.Traces, describeTrace(t))
		}
		documents = append(documents, d)
	}
	text, err := json.Marshal(documents)
	if err != nil {
		return safetensors.File{}, err
	}
	return safetensors.File{
		Metadata: map[string]string{"format": "uadt-rollout-1"},
		Tensors: map[string]safetensors.Tensor{
			tensorTokens: safetensors.FromInt32(tokens), tensorLogprobs: safetensors.FromFloat32(logprobs),
			tensorTopK: safetensors.FromFloat32(topk), tensorOffsets: safetensors.FromInt64(offsets),
			tensorFinish: safetensors.FromBytes(finish), tensorPrompts: safetensors.FromInt32(prompts),
			tensorPrompt: safetensors.FromInt64(promptOffsets), tensorGroups: safetensors.FromBytes(text),
			tensorMeta: safetensors.FromBytes(meta),
		},
	}, nil
}

func describeTrace(t rollout.Trace) traceDocument {
	d := traceDocument{Text: t.Text, TokensNone: t.Tokens == nil, Logprobs: t.Logprobs != nil, TopK: t.TopKEntropy != nil}
	if back, err := json.Marshal(t.Text); err == nil {
		var same string
		if json.Unmarshal(back, &same) == nil && same != t.Text {
			d.Text, d.TextIsBinary = "", []byte(t.Text)
		}
	}
	return d
}

// rolloutTensors are the checked columns of a file.
type rolloutTensors struct {
	tokens, prompts        []int32
	logprobs, topk         []float32
	offsets, promptOffsets []int64
	finish                 []byte
	documents              []groupDocument
	meta                   []byte
}

// decodeRollout reads a file of encodeRollout. Anything that does not fit
// together is an error.
func decodeRollout(data []byte) ([]byte, []rollout.Group, error) {
	file, err := safetensors.Decode(data)
	if err != nil {
		return nil, nil, err
	}
	c, err := readTensors(file)
	if err != nil {
		return nil, nil, err
	}
	groups := make([]rollout.Group, 0, len(c.documents))
	trace, logprobsAt, topkAt := 0, 0, 0
	for q, d := range c.documents {
		g := rollout.Group{Job: d.Job, QuestionID: d.Question, PolicySent: d.Sent, PolicyReceived: d.Received, Server: d.Server,
			Seed: d.Seed, Started: d.Started, Finished: d.Finished}
		g.PromptTokens = c.prompts[c.promptOffsets[q]:c.promptOffsets[q+1]:c.promptOffsets[q+1]]
		if d.PromptNone && len(g.PromptTokens) == 0 {
			g.PromptTokens = nil
		}
		for _, td := range d.Traces {
			from, to := c.offsets[trace], c.offsets[trace+1]
			n := int(to - from)
			t := rollout.Trace{Tokens: c.tokens[from:to:to], Text: td.Text, Finish: rollout.Finish(c.finish[trace])}
			if td.TokensNone && n == 0 {
				t.Tokens = nil
			}
			if td.TextIsBinary != nil {
				t.Text = string(td.TextIsBinary)
			}
			if td.Logprobs {
				if t.Logprobs, logprobsAt, err = take(c.logprobs, logprobsAt, n); err != nil {
					return nil, nil, fmt.Errorf("logprobs of trace %d: %w", trace, err)
				}
			}
			if td.TopK {
				if t.TopKEntropy, topkAt, err = take(c.topk, topkAt, n); err != nil {
					return nil, nil, fmt.Errorf("topk_entropy of trace %d: %w", trace, err)
				}
			}
			g.Traces = append(g.Traces, t)
			trace++
		}
		groups = append(groups, g)
	}
	if logprobsAt != len(c.logprobs) || topkAt != len(c.topk) {
		return nil, nil, errors.New("values that belong to no trace")
	}
	return c.meta, groups, nil
}

// take cuts the next n values.
func take(values []float32, at, n int) ([]float32, int, error) {
	if at+n > len(values) {
		return nil, at, fmt.Errorf("%d values from %d on, there are %d", n, at, len(values))
	}
	return values[at : at+n : at+n], at + n, nil
}

// readTensors reads every column and checks that offsets and counts fit.
func readTensors(file safetensors.File) (rolloutTensors, error) {
	var c rolloutTensors
	var problems []error
	get := func(name string, dtype safetensors.DType) safetensors.Tensor {
		t, ok := file.Tensors[name]
		if !ok || t.DType != dtype || len(t.Shape) != 1 {
			problems = append(problems, fmt.Errorf("tensor %s: %s%v, want a vector of %s", name, t.DType, t.Shape, dtype))
			return safetensors.Tensor{DType: dtype, Shape: []int{0}}
		}
		return t
	}
	keep := func(err error) { problems = append(problems, err) }
	var err error
	c.tokens, err = get(tensorTokens, safetensors.I32).Int32()
	keep(err)
	c.prompts, err = get(tensorPrompts, safetensors.I32).Int32()
	keep(err)
	c.logprobs, err = get(tensorLogprobs, safetensors.F32).Float32()
	keep(err)
	c.topk, err = get(tensorTopK, safetensors.F32).Float32()
	keep(err)
	c.offsets, err = get(tensorOffsets, safetensors.I64).Int64()
	keep(err)
	c.promptOffsets, err = get(tensorPrompt, safetensors.I64).Int64()
	keep(err)
	c.finish = get(tensorFinish, safetensors.U8).Data
	c.meta = get(tensorMeta, safetensors.U8).Data
	documents := get(tensorGroups, safetensors.U8).Data
	if err := errors.Join(problems...); err != nil {
		return c, err
	}
	if err := json.Unmarshal(documents, &c.documents); err != nil {
		return c, fmt.Errorf("tensor %s: %w", tensorGroups, err)
	}
	traces := 0
	for _, d := range c.documents {
		traces += len(d.Traces)
	}
	if len(c.finish) != traces {
		return c, fmt.Errorf("tensor %s: %d traces, the groups have %d", tensorFinish, len(c.finish), traces)
	}
	for i, f := range c.finish {
		if rollout.Finish(f) > rollout.FinishAbort {
			return c, fmt.Errorf("tensor %s: %d of trace %d", tensorFinish, f, i)
		}
	}
	return c, errors.Join(
		checkOffsets(tensorOffsets, c.offsets, traces, len(c.tokens)),
		checkOffsets(tensorPrompt, c.promptOffsets, len(c.documents), len(c.prompts)))
}

// checkOffsets wants n+1 offsets from 0 up to total.
func checkOffsets(name string, offsets []int64, n, total int) error {
	if len(offsets) != n+1 || offsets[0] != 0 || offsets[n] != int64(total) {
		return fmt.Errorf("tensor %s: want %d offsets from 0 to %d", name, n+1, total)
	}
	for i := range n {
		if offsets[i+1] < offsets[i] {
			return fmt.Errorf("tensor %s: %d after %d", name, offsets[i+1], offsets[i])
		}
	}
	return nil
}
