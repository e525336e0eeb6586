package vllm

import (
	"fmt"

	"github.com/uadt-train/uadt-train/rollout"
)

// choice is one parsed choice of a chat completion.
type choice struct {
	index    int64
	text     string
	parser   bool // the server split reasoning off the text
	finish   string
	tokens   []int32
	logprobs []float32
	entropy  []float32 // only when top-k was asked for
}

// answer is a parsed chat completion.
type answer struct {
	prompt  []int32
	choices []choice
}

// parser reads a chat completion.
type parser struct {
	scanner
	k   int       // of the topk estimator; 0 for none
	n   int       // most choices: a longer list is refused before it takes memory
	hot int       // expected tokens of a choice, to allocate once
	top []float64 // log-probabilities of the token at hand
}

// parseAnswer reads the chat completion that answers a request with these
// sampling options. Fields it does not know are skipped.
func parseAnswer(data []byte, sampling rollout.Sampling) (answer, error) {
	p := parser{scanner: scanner{data: data}, k: sampling.TopLogprobs, n: sampling.Traces}
	p.hot = min(sampling.MaxTokens, len(data)/16/max(1, p.n))
	var a answer
	p.object(func(key []byte) {
		switch string(key) {
		case "choices":
			a.choices = a.choices[:0]
			p.array(func() {
				if len(a.choices) == p.n {
					p.fail("more than %d choices", p.n)
					return
				}
				a.choices = append(a.choices, p.choice())
			})
		case "prompt_token_ids":
			a.prompt = p.ids(a.prompt[:0])
		default:
			p.skip()
		}
	})
	p.end()
	if p.err != nil {
		return answer{}, p.err
	}
	return a, nil
}

// ids reads token ids; null gives none.
func (p *parser) ids(out []int32) []int32 {
	if p.null() {
		return nil
	}
	p.array(func() {
		v := p.int()
		if v < 0 || v > 1<<31-1 {
			p.fail("token id %d", v)
		}
		out = append(out, int32(v))
	})
	return out
}

func (p *parser) choice() choice {
	c := choice{index: -1}
	p.object(func(key []byte) {
		switch string(key) {
		case "index":
			c.index = p.int()
		case "finish_reason":
			if !p.null() {
				c.finish = p.text()
			}
		case "token_ids":
			c.tokens = p.ids(make([]int32, 0, p.hot))
		case "message":
			p.message(&c)
		case "logprobs":
			p.logprobs(&c)
		default:
			p.skip()
		}
	})
	return c
}

func (p *parser) message(c *choice) {
	p.object(func(key []byte) {
		switch string(key) {
		case "content":
			if !p.null() {
				c.text = p.text()
			}
		case "reasoning", "reasoning_content":
			if !p.null() {
				c.parser = c.parser || p.text() != ""
			}
		default:
			p.skip()
		}
	})
}

func (p *parser) logprobs(c *choice) {
	if p.null() {
		return
	}
	p.object(func(key []byte) {
		switch {
		case string(key) != "content":
			p.skip()
		case p.null():
		default:
			c.logprobs = make([]float32, 0, p.hot)
			if p.k > 0 {
				c.entropy = make([]float32, 0, p.hot)
			}
			p.array(func() { p.token(c) })
		}
	})
}

// token reads one entry of logprobs.content.
func (p *parser) token(c *choice) {
	p.top = p.top[:0]
	seen := false
	p.object(func(key []byte) {
		switch string(key) {
		case "logprob":
			c.logprobs = append(c.logprobs, float32(p.float()))
			seen = true
		case "top_logprobs":
			if p.k == 0 {
				p.skip()
			} else if !p.null() {
				p.array(p.alternative)
			}
		default:
			p.skip()
		}
	})
	if p.err != nil {
		return
	}
	if !seen {
		p.fail("token %d has no log-probability", len(c.logprobs))
		return
	}
	if p.k > 0 {
		h, err := topKEntropy(p.top, p.k)
		if err != nil {
			p.fail("token %d: %w", len(c.logprobs)-1, err)
		}
		c.entropy = append(c.entropy, float32(h))
	}
}

// alternative reads one entry of top_logprobs.
func (p *parser) alternative() {
	p.object(func(key []byte) {
		if string(key) == "logprob" {
			p.top = append(p.top, p.float())
			return
		}
		p.skip()
	})
}

// finishes are the finish reasons that we know what to do with.
var finishes = map[string]rollout.Finish{
	"stop": rollout.FinishStop, "length": rollout.FinishLength, "abort": rollout.FinishAbort,
}

// traces turns the choices into traces in index order. It fails if they are not
// exactly n, each once.
func (a answer) traces(n int) ([]rollout.Trace, error) {
	if len(a.choices) != n {
		return nil, fmt.Errorf("%d choices, want %d", len(a.choices), n)
	}
	traces := make([]rollout.Trace, n)
	seen := make([]bool, n)
	for _, c := range a.choices {
		if c.index < 0 || c.index >= int64(n) || seen[c.index] {
			return nil, fmt.Errorf("choice index %d is repeated or not in [0, %d)", c.index, n)
		}
		seen[c.index] = true
		finish, ok := finishes[c.finish]
		if !ok {
			return nil, fmt.Errorf("choice %d: finish reason %q", c.index, c.finish)
		}
		if c.parser {
			return nil, fmt.Errorf("choice %d: the server takes the reasoning out of the text; start it without a reasoning parser", c.index)
		}
		if len(c.tokens) > 0 && c.logprobs == nil {
			return nil, fmt.Errorf("choice %d: no log-probabilities", c.index)
		}
		traces[c.index] = rollout.Trace{
			Tokens: c.tokens, Logprobs: c.logprobs, TopKEntropy: c.entropy, Text: c.text, Finish: finish,
		}
	}
	return traces, nil
}
