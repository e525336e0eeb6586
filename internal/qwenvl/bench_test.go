package qwenvl

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"
)

// benchConfig is the size of the micro model that the quickstart trains.
func benchConfig(b *testing.B) Config {
	m := microJSON()
	m["intermediate_size"], m["vocab_size"] = 192, 400
	vision := m["vision_config"].(map[string]any)
	vision["hidden_size"], vision["intermediate_size"], vision["num_heads"] = 64, 128, 4
	c, err := ParseConfig(encode(b, m))
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// benchRequests are 48 questions on an 84 x 84 image each (9 image tokens, 40
// prompt tokens), 8 traces of 48 tokens per question.
func benchRequests(config Config, salt string) []Request {
	var requests []Request
	for i := range 48 {
		grid := Grid{1, 6, 6}
		prompt := []int32{44, 42, 42, 42, 42, 42, 42, 42, 42, 42, 45}
		for j := range 29 {
			prompt = append(prompt, int32(100+(i*31+j*7)%250))
		}
		requests = append(requests, Request{Prompt: prompt, Choices: 8, Salt: salt,
			Images: []Image{{Digest: sha256.Sum256(fmt.Append(nil, salt, i)), Grid: grid, Patches: drawnPatches(config, grid, uint64(i))}},
			Sampling: Sampling{Temperature: 1, MaxTokens: 48, IgnoreEOS: true, Seed: int64(i * 1024), Seeded: true,
				Banned: []int32{42, 43}}})
	}
	return requests
}

// BenchmarkDecode measures tokens per second of 384 concurrent traces, prefill
// and image encoding included, and prints a JSON line for the measurements.
func BenchmarkDecode(b *testing.B) {
	config := benchConfig(b)
	e, err := New(drawnModel(b, config, ""), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	tokens, rounds := 0, 0
	start := time.Now()
	for b.Loop() {
		rounds++
		var wait sync.WaitGroup
		for _, request := range benchRequests(config, fmt.Sprint(rounds)) {
			wait.Go(func() {
				if _, err := e.Generate(context.Background(), request); err != nil {
					b.Error(err)
				}
			})
			tokens += 8 * 48
		}
		wait.Wait()
	}
	perSecond := float64(tokens) / time.Since(start).Seconds()
	b.ReportMetric(perSecond, "tokens/s")
	b.ReportMetric(0, "ns/op")
	line := map[string]any{"bench": "native_decode", "traces": 384, "tokens_per_trace": 48, "prompt_tokens": 40,
		"workers": e.options.Workers, "tokens_per_second": int(perSecond)}
	if err := json.NewEncoder(os.Stderr).Encode(line); err != nil {
		b.Error(err)
	}
}
