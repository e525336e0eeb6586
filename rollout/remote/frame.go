package remote

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/internal/safetensors"
	"github.com/uadt-train/uadt-train/rollout"
)

// SchemaGroup names the frame of a trace group and its major version.
const SchemaGroup = "uadt.trace-group/1"

// frameSchema and frameVersion are the metadata of the frame itself. Version is
// major.minor; a reader takes any minor one of its major.
const (
	frameSchema  = "uadt.trace-group"
	frameMajor   = 1
	frameVersion = "1.0"
)

// ErrFrame is wrapped by every error about bytes that are not the frame of a
// trace group.
var ErrFrame = errors.New("not a trace group")

// Names of the tensors of a frame. tokens, rollout_logprobs and entropy_topk
// are concatenated over the traces; offsets and text_offsets have G+1 entries.
const (
	tensorTokens      = "tokens"           // I32 [sum T]
	tensorLogprobs    = "rollout_logprobs" // F32 [sum T], nats
	tensorOffsets     = "offsets"          // I32 [G+1]
	tensorPrompt      = "prompt_tokens"    // I32 [P]
	tensorFinish      = "finish"           // U8 [G], values of rollout.Finish
	tensorText        = "text"             // U8, UTF-8
	tensorTextOffsets = "text_offsets"     // I32 [G+1], bytes
	tensorEntropy     = "entropy_topk"     // F32 [sum T], nats; optional
)

// Origin is what a frame says beside the group: for people and tools who read
// a frame by itself.
type Origin struct {
	Run       string
	Tokenizer string   // digest of the tokenizer, empty if unknown
	Images    []string // digests of the question's images
}

// EncodeGroup renders g as a safetensors frame.
func EncodeGroup(g rollout.Group, origin Origin) ([]byte, error) {
	total, textBytes := 0, 0
	for i, t := range g.Traces {
		if len(t.Logprobs) != len(t.Tokens) || t.TopKEntropy != nil && len(t.TopKEntropy) != len(t.Tokens) {
			return nil, fmt.Errorf("trace %d of job %s: %d tokens, %d log-probabilities, %d entropies",
				i, g.Job, len(t.Tokens), len(t.Logprobs), len(t.TopKEntropy))
		}
		if (t.TopKEntropy == nil) != (g.Traces[0].TopKEntropy == nil) {
			return nil, fmt.Errorf("job %s: trace %d and trace 0 disagree whether there are entropies", g.Job, i)
		}
		total += len(t.Tokens)
		textBytes += len(t.Text)
	}
	if total > math.MaxInt32 || textBytes > math.MaxInt32 {
		return nil, fmt.Errorf("job %s: %d tokens and %d bytes of text do not fit a frame", g.Job, total, textBytes)
	}
	tokens, logprobs := make([]int32, 0, total), make([]float32, 0, total)
	var entropy []float32
	offsets, textOffsets := []int32{0}, []int32{0}
	finish, text := make([]byte, 0, len(g.Traces)), make([]byte, 0, textBytes)
	for _, t := range g.Traces {
		tokens, logprobs, entropy = append(tokens, t.Tokens...), append(logprobs, t.Logprobs...), append(entropy, t.TopKEntropy...)
		text, finish = append(text, t.Text...), append(finish, byte(t.Finish))
		offsets, textOffsets = append(offsets, int32(len(tokens))), append(textOffsets, int32(len(text)))
	}
	metadata, err := groupMetadata(g, origin)
	if err != nil {
		return nil, err
	}
	tensors := map[string]safetensors.Tensor{
		tensorTokens: safetensors.FromInt32(tokens), tensorLogprobs: safetensors.FromFloat32(logprobs),
		tensorOffsets: safetensors.FromInt32(offsets), tensorPrompt: safetensors.FromInt32(g.PromptTokens),
		tensorFinish: safetensors.FromBytes(finish),
		tensorText:   safetensors.FromBytes(text), tensorTextOffsets: safetensors.FromInt32(textOffsets),
	}
	if len(g.Traces) > 0 && g.Traces[0].TopKEntropy != nil {
		tensors[tensorEntropy] = safetensors.FromFloat32(entropy)
	}
	return safetensors.Encode(safetensors.File{Metadata: metadata, Tensors: tensors})
}

// groupMetadata renders what is no array.
func groupMetadata(g rollout.Group, origin Origin) (map[string]string, error) {
	sent, err := json.Marshal(g.PolicySent)
	if err != nil {
		return nil, err
	}
	received, err := json.Marshal(g.PolicyReceived)
	if err != nil {
		return nil, err
	}
	return map[string]string{
		"schema": frameSchema, "version": frameVersion,
		"run": origin.Run, "tokenizer": origin.Tokenizer, "images": strings.Join(origin.Images, ","),
		"incarnation": strconv.FormatUint(g.PolicySent.Incarnation, 10),
		"job":         string(g.Job), "question": g.QuestionID, "seed": strconv.FormatInt(g.Seed, 10), "server": g.Server,
		"policy_sent": string(sent), "policy_received": string(received),
		"started":  g.Started.UTC().Format(time.RFC3339Nano),
		"finished": g.Finished.UTC().Format(time.RFC3339Nano),
	}, nil
}

// DecodeGroup reads a frame. The group's arrays alias data, which must not
// change. Unknown tensors and metadata are ignored; a missing one, a higher
// major version and arrays that do not fit each other are errors that wrap
// ErrFrame. Whether the group answers its job is for Group.Check.
func DecodeGroup(data []byte) (rollout.Group, error) {
	file, err := safetensors.Decode(data)
	if err != nil {
		return rollout.Group{}, fmt.Errorf("%w: %w", ErrFrame, err)
	}
	g, err := parseMetadata(file.Metadata)
	if err == nil {
		err = parseTensors(file, &g)
	}
	if err != nil {
		return rollout.Group{}, fmt.Errorf("%w: %w", ErrFrame, err)
	}
	return g, nil
}

// parseMetadata is the inverse of groupMetadata.
func parseMetadata(m map[string]string) (g rollout.Group, err error) {
	if m["schema"] != frameSchema {
		return g, fmt.Errorf("schema %q, want %q", m["schema"], frameSchema)
	}
	major, _, _ := strings.Cut(m["version"], ".")
	if v, err := strconv.Atoi(major); err != nil || v < 1 || v > frameMajor {
		return g, fmt.Errorf("version %q of %s, this program reads major version %d", m["version"], frameSchema, frameMajor)
	}
	need := func(key string) string {
		value, ok := m[key]
		if !ok && err == nil {
			err = fmt.Errorf("no metadata %q", key)
		}
		return value
	}
	g = rollout.Group{Job: rollout.JobID(need("job")), QuestionID: need("question"), Server: need("server")}
	seed, sent, received, started, finished := need("seed"), need("policy_sent"), need("policy_received"), need("started"), need("finished")
	if err != nil {
		return g, err
	}
	if g.Seed, err = strconv.ParseInt(seed, 10, 64); err != nil {
		return g, fmt.Errorf("metadata seed %q: %w", seed, err)
	}
	if err := bus.DecodeStrict([]byte(sent), &g.PolicySent); err != nil {
		return g, fmt.Errorf("metadata policy_sent %q: %w", sent, err)
	}
	if err := bus.DecodeStrict([]byte(received), &g.PolicyReceived); err != nil {
		return g, fmt.Errorf("metadata policy_received %q: %w", received, err)
	}
	if g.Started, err = time.Parse(time.RFC3339Nano, started); err != nil {
		return g, fmt.Errorf("metadata started: %w", err)
	}
	if g.Finished, err = time.Parse(time.RFC3339Nano, finished); err != nil {
		return g, fmt.Errorf("metadata finished: %w", err)
	}
	return g, nil
}

// vectors are the arrays of a frame before they are cut into traces.
type vectors struct {
	tokens, offsets, prompt, textOffsets []int32
	logprobs, entropy                    []float32
	finish, text                         []byte
	hasEntropy                           bool
}

// parseTensors cuts the arrays of file into the traces of g.
func parseTensors(file safetensors.File, g *rollout.Group) error {
	v, err := readVectors(file)
	if err != nil {
		return err
	}
	n := len(v.finish)
	if len(v.logprobs) != len(v.tokens) || v.hasEntropy && len(v.entropy) != len(v.tokens) {
		return fmt.Errorf("%d tokens, %d log-probabilities, %d entropies", len(v.tokens), len(v.logprobs), len(v.entropy))
	}
	if err := checkOffsets(tensorOffsets, v.offsets, n, len(v.tokens)); err != nil {
		return err
	}
	if err := checkOffsets(tensorTextOffsets, v.textOffsets, n, len(v.text)); err != nil {
		return err
	}
	g.PromptTokens = v.prompt
	g.Traces = make([]rollout.Trace, n)
	for i := range g.Traces {
		if v.finish[i] > byte(rollout.FinishAbort) {
			return fmt.Errorf("finish %d of trace %d", v.finish[i], i)
		}
		from, to := v.offsets[i], v.offsets[i+1]
		g.Traces[i] = rollout.Trace{
			Tokens: v.tokens[from:to:to], Logprobs: v.logprobs[from:to:to],
			Text: string(v.text[v.textOffsets[i]:v.textOffsets[i+1]]), Finish: rollout.Finish(v.finish[i]),
		}
		if v.hasEntropy {
			g.Traces[i].TopKEntropy = v.entropy[from:to:to]
		}
	}
	return nil
}

// readVectors finds the arrays of a frame by name, type and rank.
func readVectors(file safetensors.File) (v vectors, err error) {
	get := func(name string) (t safetensors.Tensor) {
		t, ok := file.Tensors[name]
		switch {
		case err != nil:
		case !ok:
			err = fmt.Errorf("no tensor %q", name)
		case len(t.Shape) != 1:
			err = fmt.Errorf("tensor %q has shape %v, want one axis", name, t.Shape)
		}
		return t
	}
	ints := func(name string) []int32 {
		t := get(name)
		if err != nil {
			return nil
		}
		values, bad := t.ViewInt32()
		if bad != nil {
			err = fmt.Errorf("tensor %q: %w", name, bad)
		}
		return values
	}
	floats := func(name string) []float32 {
		t := get(name)
		if err != nil {
			return nil
		}
		values, bad := t.ViewFloat32()
		if bad != nil {
			err = fmt.Errorf("tensor %q: %w", name, bad)
		}
		return values
	}
	octets := func(name string) []byte {
		t := get(name)
		if err == nil && t.DType != safetensors.U8 {
			err = fmt.Errorf("tensor %q: element type is %s, want U8", name, t.DType)
		}
		return t.Data
	}
	v.tokens, v.logprobs, v.offsets, v.prompt = ints(tensorTokens), floats(tensorLogprobs), ints(tensorOffsets), ints(tensorPrompt)
	v.finish, v.text, v.textOffsets = octets(tensorFinish), octets(tensorText), ints(tensorTextOffsets)
	if _, ok := file.Tensors[tensorEntropy]; ok && err == nil {
		v.entropy, v.hasEntropy = floats(tensorEntropy), true
	}
	return v, err
}

// checkOffsets checks that offsets cut length elements into n pieces.
func checkOffsets(name string, offsets []int32, n, length int) error {
	if len(offsets) != n+1 || offsets[0] != 0 || int(offsets[n]) != length {
		return fmt.Errorf("tensor %q does not cut %d elements into %d pieces", name, length, n)
	}
	for i := range n {
		if offsets[i+1] < offsets[i] {
			return fmt.Errorf("tensor %q falls from %d to %d at %d", name, offsets[i], offsets[i+1], i+1)
		}
	}
	return nil
}
