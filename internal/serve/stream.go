package serve

import (
	"net/http"
	"strconv"
	"sync"
	"unicode/utf8"

	"github.com/uadt-train/uadt-train/internal/qwenvl"
)

// event is one new token of one choice, on its way to the client.
type event struct {
	choice           int
	token            int32
	logProb, entropy float32
	top              []qwenvl.TokenLogProb
	text             string
	final            bool
	finish           qwenvl.Choice // Finish and StopToken only, when final
}

// stream sends a chat completion as server-sent events. The engine's goroutine
// appends events and never waits; the handler's goroutine writes them.
type stream struct {
	job     *job
	out     http.ResponseWriter
	flush   func()
	writers []*logprobWriter
	sent    []int // bytes of text handed to events, by choice
	ended   []bool
	opened  bool
	tokens  int

	mu     sync.Mutex
	queue  []event
	notify chan struct{} // holds a token when queue is not empty
}

// stream answers a streaming request. Errors before the first event are
// returned; later ones are sent as an event, as vLLM does.
func (j *job) stream(w http.ResponseWriter, r *http.Request) error {
	s := &stream{job: j, out: w, flush: func() {}, sent: make([]int, j.n), ended: make([]bool, j.n), notify: make(chan struct{}, 1)}
	if flusher, ok := w.(http.Flusher); ok {
		s.flush = flusher.Flush
	}
	for range j.n {
		s.writers = append(s.writers, j.logprobWriter())
	}
	work := j.engineRequest()
	work.Watch = s.watch
	var result qwenvl.Result
	var err error
	done := make(chan struct{})
	go func() { // ends when Generate does, which r's context bounds
		defer close(done)
		result, err = j.server.engine.Generate(r.Context(), work)
	}()
	for running := true; running; {
		select {
		case <-s.notify:
		case <-done:
			running = false
		}
		s.send()
	}
	if err != nil {
		if !s.opened || r.Context().Err() != nil {
			return engineError(err)
		}
		s.write(errorEvent(engineError(err)))
	} else {
		s.close(&result)
	}
	s.write([]byte("[DONE]"))
	return nil
}

// watch runs on the engine's goroutine.
func (s *stream) watch(i int, c *qwenvl.Choice) bool {
	t := s.job.texts[i]
	last := len(c.Tokens) - 1
	hit := false
	if c.Finish != qwenvl.FinishStop || s.job.request.IncludeStop {
		hit = t.feed(c.Tokens)
	}
	e := event{choice: i, token: c.Tokens[last], logProb: c.LogProbs[last], entropy: c.Entropies[last],
		top: topOf(c, last), final: hit || c.Finish != ""}
	if e.final {
		e.finish = qwenvl.Choice{Finish: c.Finish, StopToken: c.StopToken}
		if hit {
			e.finish.Finish = qwenvl.FinishStop
		}
		e.text = t.finish()[s.sent[i]:]
	} else if end := wholeRunes(t.text, len(t.text)-t.holdBack()); end > s.sent[i] {
		e.text = string(t.text[s.sent[i]:end])
		s.sent[i] = end
	}
	s.mu.Lock()
	s.queue = append(s.queue, e)
	s.mu.Unlock()
	select {
	case s.notify <- struct{}{}:
	default:
	}
	return hit
}

// wholeRunes moves end back to the start of a character.
func wholeRunes(text []byte, end int) int {
	for end > 0 && end < len(text) && !utf8.RuneStart(text[end]) {
		end--
	}
	return max(end, 0)
}

// send writes what is queued.
func (s *stream) send() {
	s.mu.Lock()
	events := s.queue
	s.queue = nil
	s.mu.Unlock()
	if len(events) == 0 {
		return
	}
	s.open()
	for i := range events {
		s.tokens++
		s.ended[events[i].choice] = events[i].final
		s.write(s.chunk(&events[i]))
	}
	s.flush()
}

// open writes the headers and the first chunk of every choice.
func (s *stream) open() {
	if s.opened {
		return
	}
	s.opened = true
	s.out.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	s.out.Header().Set("Cache-Control", "no-cache")
	s.out.WriteHeader(http.StatusOK)
	for i := range s.job.n {
		b := s.job.appendHead(nil, "chat.completion.chunk")
		b = append(b, `,"choices":[{"index":`...)
		b = strconv.AppendInt(b, int64(i), 10)
		b = append(b, `,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]`...)
		if i == 0 && or(s.job.request.ReturnTokenIDs, false) {
			b = append(b, `,"prompt_token_ids":`...)
			b = appendIDs(b, s.job.prompt.tokens)
		}
		s.write(append(b, '}'))
	}
}

// chunk is the event of one token.
func (s *stream) chunk(e *event) []byte {
	j := s.job
	b := j.appendHead(nil, "chat.completion.chunk")
	b = append(b, `,"choices":[{"index":`...)
	b = strconv.AppendInt(b, int64(e.choice), 10)
	b = append(b, `,"delta":{"content":`...)
	b = appendString(b, []byte(e.text))
	b = append(b, `},"logprobs":`...)
	if or(j.request.Logprobs, false) {
		b = append(b, `{"content":[`...)
		b = s.writers[e.choice].appendEntry(b, e.token, e.logProb, e.top)
		b = append(b, "]}"...)
	} else {
		b = append(b, "null"...)
	}
	if e.final {
		b = append(b, ',')
		b = j.appendStop(b, e.choice, &e.finish)
	} else {
		b = append(b, `,"finish_reason":null`...)
	}
	if or(j.request.ReturnTokenIDs, false) {
		b = append(b, `,"token_ids":`...)
		b = appendIDs(b, []int32{e.token})
	}
	if j.request.XArgs.Entropy {
		b = appendEntropies(b, []float32{e.entropy})
	}
	return append(b, "}]}"...)
}

// close ends choices that were aborted between tokens and sends the usage.
func (s *stream) close(result *qwenvl.Result) {
	s.open()
	for i := range result.Choices {
		if s.ended[i] {
			continue
		}
		c := &result.Choices[i]
		b := s.job.appendHead(nil, "chat.completion.chunk")
		b = append(b, `,"choices":[{"index":`...)
		b = strconv.AppendInt(b, int64(i), 10)
		b = append(b, `,"delta":{"content":`...)
		b = appendString(b, []byte(s.job.texts[i].finish()[s.sent[i]:]))
		b = append(b, `},"logprobs":null,`...)
		b = s.job.appendStop(b, i, c)
		s.write(append(b, "}]}"...))
	}
	if o := s.job.request.StreamOptions; o != nil && or(o.IncludeUsage, false) {
		b := s.job.appendHead(nil, "chat.completion.chunk")
		b = append(b, `,"choices":[],"usage":`...)
		b = s.job.appendUsage(b, s.tokens, result.CachedTokens)
		s.write(append(b, '}'))
	}
}

// write sends one event. A failed write means that the client has left, which
// the request's context tells too.
func (s *stream) write(data []byte) {
	_, _ = s.out.Write(append(append([]byte("data: "), data...), "\n\n"...))
}
