package serve

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"
)

// BenchmarkChat measures sampled tokens per second through HTTP: 48 questions
// with an image each at once, 8 traces of 48 tokens per question, with token
// ids and log-probabilities, and prints a JSON line for the measurements.
func BenchmarkChat(b *testing.B) {
	k := newKit(b, nil)
	const questions, traces, length = 48, 8, 48
	bodies := make([][]byte, questions)
	for i := range bodies {
		raw, err := json.Marshal(with(ask(imagePart(pngURL(b, 84, 84, i), ""), textPart("what is the answer? yes no one two three")),
			"n", traces, "max_completion_tokens", length, "seed", i*1024))
		if err != nil {
			b.Fatal(err)
		}
		bodies[i] = raw
	}
	tokens, rounds := 0, 0
	start := time.Now()
	for b.Loop() {
		rounds++
		var wait sync.WaitGroup
		for _, body := range bodies {
			wait.Go(func() {
				if status, _, raw := k.send("POST", "/v1/chat/completions", string(body)); status != 200 {
					b.Errorf("%d %s", status, raw)
				}
			})
			tokens += traces * length
		}
		wait.Wait()
		k.ok("POST", "/pause?mode=wait", nil) // as between two training steps: every cache is dropped
		k.ok("POST", "/resume", nil)
	}
	perSecond := float64(tokens) / time.Since(start).Seconds()
	b.ReportMetric(perSecond, "tokens/s")
	b.ReportMetric(0, "ns/op")
	line := map[string]any{"bench": "native_serve", "questions": questions, "traces_per_question": traces,
		"tokens_per_trace": length, "tokens_per_second": int(perSecond)}
	if err := json.NewEncoder(os.Stderr).Encode(line); err != nil {
		b.Error(fmt.Errorf("printing: %w", err))
	}
}
