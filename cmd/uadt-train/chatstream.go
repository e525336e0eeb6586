package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// streamedToken is one token of a streamed answer.
type streamedToken struct {
	text    string
	logprob float64
	entropy float64
	exact   bool // whether the server sent an entropy
}

// chunk is what infer reads of a streamed event.
type chunk struct {
	Choices []struct {
		Delta struct {
			Content string `json:"content"`
		} `json:"delta"`
		Logprobs *struct {
			Content []struct {
				Token   string  `json:"token"`
				Logprob float64 `json:"logprob"`
			} `json:"content"`
		} `json:"logprobs"`
		Entropies []float64 `json:"token_entropies"`
	} `json:"choices"`
	Error *struct {
		Message string `json:"message"`
	} `json:"error"`
}

// streamChat posts a streaming chat completion and hands every piece of text to
// show as it comes.
func streamChat(ctx context.Context, url string, body map[string]any, show func(string)) ([]streamedToken, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("chat request: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(url, "/")+"/v1/chat/completions", bytes.NewReader(data))
	if err != nil {
		return nil, usagef("--servers %s: %w", url, err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, &unreachableError{"the server at " + url, err}
	}
	defer response.Body.Close() //nolint:errcheck // read to its end or given up
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		return nil, fmt.Errorf("server %s: status %d: %s", url, response.StatusCode, serverMessage(text))
	}
	tokens, err := readEvents(response.Body, show)
	if err != nil {
		return nil, fmt.Errorf("server %s: %w", url, err)
	}
	return tokens, nil
}

func readEvents(stream io.Reader, show func(string)) ([]streamedToken, error) {
	var tokens []streamedToken
	answered := false
	scanner := bufio.NewScanner(stream)
	scanner.Buffer(nil, 16<<20)
	for scanner.Scan() {
		event, ok := strings.CutPrefix(scanner.Text(), "data: ")
		if !ok {
			continue
		}
		if event == "[DONE]" && !answered {
			return nil, errors.New("the stream ended without an answer")
		}
		if event == "[DONE]" {
			return tokens, nil
		}
		var c chunk
		if err := json.Unmarshal([]byte(event), &c); err != nil {
			return nil, fmt.Errorf("streamed event: %w", err)
		}
		if c.Error != nil {
			return nil, errors.New(c.Error.Message)
		}
		for _, choice := range c.Choices {
			answered = true
			show(choice.Delta.Content)
			if choice.Logprobs == nil {
				continue
			}
			for i, t := range choice.Logprobs.Content {
				token := streamedToken{text: t.Token, logprob: t.Logprob}
				if i < len(choice.Entropies) {
					token.entropy, token.exact = choice.Entropies[i], true
				}
				tokens = append(tokens, token)
			}
		}
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("streamed answer: %w", err)
	}
	return nil, fmt.Errorf("streamed answer: %w before its end", io.ErrUnexpectedEOF)
}

// serverMessage takes the message out of a server's error, if it is in the
// usual form.
func serverMessage(text []byte) string {
	var answer struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	if json.Unmarshal(text, &answer) == nil && answer.Error.Message != "" {
		return answer.Error.Message
	}
	return strings.TrimSpace(string(text))
}

// answerPrinter prints reasoning and answer apart while the text comes in.
type answerPrinter struct {
	out    *printer
	buffer string // text that may still become a tag
	broken bool   // whether the last thing printed ended its line
}

// tagLabels are what stands in place of the tags.
var tagLabels = []struct{ tag, label string }{
	{"<think>", "reasoning: "}, {"</think>", "\n"}, {"<answer>", "answer: "}, {"</answer>", "\n"},
}

// text prints what is certain of the text so far.
func (a *answerPrinter) text(piece string) {
	a.buffer += piece
	for {
		at := strings.IndexByte(a.buffer, '<')
		if a.buffer != "" && at != 0 {
			a.broken = false
		}
		if at < 0 {
			a.out.printf("%s", a.buffer)
			a.buffer = ""
			return
		}
		a.out.printf("%s", a.buffer[:at])
		a.buffer = a.buffer[at:]
		if !a.replaceTag() {
			return
		}
	}
}

// replaceTag takes a tag, or a bare "<", off the buffer; false when more text is
// needed to tell.
func (a *answerPrinter) replaceTag() bool {
	for _, t := range tagLabels {
		if rest, ok := strings.CutPrefix(a.buffer, t.tag); ok {
			a.out.printf("%s", t.label)
			a.buffer, a.broken = rest, strings.HasSuffix(t.label, "\n")
			return true
		}
		if strings.HasPrefix(t.tag, a.buffer) {
			return false
		}
	}
	a.out.printf("<")
	a.buffer = a.buffer[1:]
	return true
}

func (a *answerPrinter) end() {
	a.out.printf("%s", a.buffer)
	if a.buffer != "" || !a.broken {
		a.out.printf("\n")
	}
	a.buffer = ""
}

// entropies prints a line a token; the bar has one mark for each tenth of a nat.
func (a *answerPrinter) entropies(tokens []streamedToken) {
	a.out.printf("\n%-20s %9s %9s\n", "token", "logprob", "H, nats")
	for _, t := range tokens {
		if !t.exact {
			a.out.printf("%-20q %9.4f %9s\n", t.text, t.logprob, "-")
			continue
		}
		a.out.printf("%-20q %9.4f %9.4f %s\n", t.text, t.logprob, t.entropy, strings.Repeat("|", int(t.entropy*10+0.5)))
	}
}
