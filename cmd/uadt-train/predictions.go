package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"sync"

	"github.com/uadt-train/uadt-train/internal/evaluate"
	"github.com/uadt-train/uadt-train/rollout"
)

// evalSettings is what predictions depend on; a directory holds those of one
// set of them.
type evalSettings struct {
	Version       int      `json:"version"`
	Model         string   `json:"model,omitempty"`
	ModelDigest   string   `json:"model_digest,omitempty"`
	Servers       []string `json:"servers,omitempty"`
	Data          []string `json:"data"`
	Protocol      string   `json:"protocol"`
	Samples       int      `json:"samples"`
	Temperature   float64  `json:"temperature"`
	MaxTokens     int      `json:"max_tokens"`
	Limit         int      `json:"limit"`
	WithoutImages bool     `json:"without_images"`
}

// prediction is one line of predictions.jsonl: one response.
type prediction struct {
	ID        string         `json:"id"`
	Dataset   string         `json:"dataset"`
	Sample    int            `json:"sample"`
	Text      string         `json:"text"`
	Finish    string         `json:"finish"` // stop, length, abort, or dropped
	Tokens    int            `json:"tokens"`
	Logprob   float64        `json:"logprob"` // sum over the response, nats
	Seed      int64          `json:"seed"`
	Gold      string         `json:"gold"`
	Strict    *predictionOut `json:"strict,omitempty"`
	Lenient   *predictionOut `json:"lenient,omitempty"`
	Formatted bool           `json:"formatted"`
	Reason    string         `json:"reason,omitempty"` // why it was dropped
}

// predictionOut is an extraction.
type predictionOut struct {
	Extracted string `json:"extracted"`
	Reason    string `json:"reason"`
	Correct   bool   `json:"correct"`
}

// predictions is an evaluation directory.
type predictions struct {
	settings  evalSettings
	questions []evalQuestion
	samples   int

	mu    sync.Mutex
	file  *os.File
	lines map[string][]prediction // by record
}

// openPredictions creates the directory or takes up what is in it. A last line
// that was cut off by a crash is dropped.
func openPredictions(f evalFlags, p protocol, questions []evalQuestion) (*predictions, error) {
	settings := evalSettings{
		Version: 1, Model: f.model, Servers: f.servers, Data: f.data, Protocol: f.protocol, Samples: f.samples,
		Temperature: f.temperature, MaxTokens: p.maxTokens, Limit: f.limit, WithoutImages: f.withoutImages,
	}
	if f.model != "" {
		digest, err := modelDigest(f.model)
		if err != nil {
			return nil, err
		}
		settings.ModelDigest = digest
	}
	l := &predictions{settings: settings, questions: questions, samples: f.samples, lines: map[string][]prediction{}}
	if err := l.checkSettings(filepath.Join(f.out, "settings.json")); err != nil {
		return nil, err
	}
	path := filepath.Join(f.out, "predictions.jsonl")
	good, err := l.read(path)
	if err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("predictions: %w", err)
	}
	if err := file.Truncate(good); err != nil {
		return nil, errors.Join(fmt.Errorf("predictions: %w", err), file.Close())
	}
	if _, err := file.Seek(good, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("predictions: %w", err), file.Close())
	}
	l.file = file
	return l, nil
}

// checkSettings writes settings.json, or compares with the one that is there.
func (l *predictions) checkSettings(path string) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if data, err = json.MarshalIndent(l.settings, "", "  "); err != nil {
			return fmt.Errorf("settings: %w", err)
		}
		return os.WriteFile(path, append(data, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	var before evalSettings
	if err := json.Unmarshal(data, &before); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if !reflect.DeepEqual(before, l.settings) {
		return usagef("eval: %s holds an evaluation with other settings; give another --out", filepath.Dir(path))
	}
	return nil
}

// read takes up the whole lines of a file and returns where they end.
func (l *predictions) read(path string) (good int64, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("predictions: %w", err)
	}
	scanner := bufio.NewScanner(bytes.NewReader(data))
	scanner.Buffer(nil, 16<<20)
	for n := 1; scanner.Scan(); n++ {
		end := good + int64(len(scanner.Bytes())) + 1
		if end > int64(len(data)) {
			break // cut off
		}
		var p prediction
		if err := json.Unmarshal(scanner.Bytes(), &p); err != nil {
			return 0, fmt.Errorf("%s:%d: %w", path, n, err)
		}
		l.lines[p.ID] = append(l.lines[p.ID], p)
		good = end
	}
	if err := scanner.Err(); err != nil {
		return 0, fmt.Errorf("predictions: %w", err)
	}
	return good, nil
}

// open lists the records that are not answered. Half of a record's responses
// count for nothing: lines of one record are written at once.
func (l *predictions) open() []evalQuestion {
	var out []evalQuestion
	for _, q := range l.questions {
		if len(l.lines[q.question.ID]) == 0 {
			out = append(out, q)
		}
	}
	return out
}

// add writes the responses to one record. A record that was dropped is not
// written, so that it is asked again next time.
func (l *predictions) add(q evalQuestion, one answered) error {
	if one.dropped != nil {
		return nil
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	var lines []prediction
	for i, t := range one.group.Traces {
		p := predictionOf(q, i, t)
		p.Seed = one.group.Seed + int64(i)
		lines = append(lines, p)
		if err := encoder.Encode(p); err != nil {
			return fmt.Errorf("prediction of %s: %w", q.question.ID, err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := l.file.Write(out.Bytes()); err != nil {
		return fmt.Errorf("predictions: %w", err)
	}
	l.lines[q.question.ID] = lines
	return nil
}

func predictionOf(q evalQuestion, sample int, t rollout.Trace) prediction {
	outcome := evaluate.Assess(q.question, t)
	p := prediction{
		ID: q.question.ID, Dataset: q.dataset, Sample: sample, Text: t.Text, Finish: t.Finish.String(),
		Tokens: len(t.Tokens), Gold: q.question.Gold, Formatted: outcome.Formatted,
		Strict:  &predictionOut{outcome.Strict.Extracted, string(outcome.Strict.Reason), outcome.Strict.Exact},
		Lenient: &predictionOut{outcome.Lenient.Extracted, string(outcome.Lenient.Reason), outcome.Lenient.Exact},
	}
	for _, lp := range t.Logprobs {
		p.Logprob += float64(lp)
	}
	return p
}

// results are the records with their outcomes, those of earlier starts scored
// again from their texts.
func (l *predictions) results() []evaluate.Result {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]evaluate.Result, len(l.questions))
	for i, q := range l.questions {
		out[i] = evaluate.Result{Dataset: q.dataset, Question: q.question}
		for _, p := range l.lines[q.question.ID] {
			trace := rollout.Trace{Text: p.Text}
			if p.Finish == rollout.FinishLength.String() {
				trace.Finish = rollout.FinishLength
			}
			out[i].Outcomes = append(out[i].Outcomes, evaluate.Assess(q.question, trace))
		}
	}
	return out
}

func (l *predictions) close() error {
	if err := l.file.Sync(); err != nil {
		return errors.Join(fmt.Errorf("predictions: %w", err), l.file.Close())
	}
	return l.file.Close()
}
