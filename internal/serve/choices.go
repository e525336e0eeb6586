package serve

import (
	"encoding/json"
	"strconv"

	"github.com/uadt-train/uadt-train/internal/qwenvl"
)

// job is one chat completion while it is answered.
type job struct {
	server   *Server
	request  *chatRequest
	id       string
	created  int64
	prompt   prompt
	sampling qwenvl.Sampling
	n        int
	texts    []*textState
}

func (j *job) newText() *textState {
	t := &textState{decoder: j.server.tokens.NewDecoder(or(j.request.SkipSpecial, true)), stops: j.request.Stop,
		include: j.request.IncludeStop, min: j.sampling.MinTokens}
	return t
}

// visible are the tokens whose text belongs to the content: a token that ended
// the choice does not, unless asked for.
func (j *job) visible(c *qwenvl.Choice, stopped string) []int32 {
	if c.Finish == qwenvl.FinishStop && stopped == "" && !j.request.IncludeStop && len(c.Tokens) > 0 {
		return c.Tokens[:len(c.Tokens)-1]
	}
	return c.Tokens
}

// content is the whole text of a finished choice.
func (j *job) content(i int, c *qwenvl.Choice) string {
	t := j.texts[i]
	if t.stopped == "" {
		t.feed(j.visible(c, ""))
	}
	return t.finish()
}

// appendStop appends "finish_reason" and "stop_reason".
func (j *job) appendStop(b []byte, i int, c *qwenvl.Choice) []byte {
	b = append(b, `"finish_reason":"`...)
	b = append(b, c.Finish...)
	b = append(b, `","stop_reason":`...)
	switch {
	case c.Finish == qwenvl.FinishStop && c.StopToken >= 0:
		return strconv.AppendInt(b, int64(c.StopToken), 10)
	case j.texts[i].stopped != "":
		return appendString(b, []byte(j.texts[i].stopped))
	}
	return append(b, "null"...)
}

func (j *job) logprobWriter() *logprobWriter {
	return &logprobWriter{texts: tokenTexts{tokens: j.server.tokens}, asIDs: or(j.request.TokensAsIDs, false),
		top: j.sampling.TopLogProbs}
}

// topOf are the candidates of token t of a choice.
func topOf(c *qwenvl.Choice, t int) []qwenvl.TokenLogProb {
	return c.Top[t*c.TopPerToken : (t+1)*c.TopPerToken]
}

// appendChoice appends one choice of a whole response.
func (j *job) appendChoice(b []byte, i int, c *qwenvl.Choice) []byte {
	b = append(b, `{"index":`...)
	b = strconv.AppendInt(b, int64(i), 10)
	b = append(b, `,"message":{"role":"assistant","content":`...)
	b = appendString(b, []byte(j.content(i, c)))
	b = append(b, `,"refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null},"logprobs":`...)
	if or(j.request.Logprobs, false) {
		w := j.logprobWriter()
		b = append(b, `{"content":[`...)
		for t, id := range c.Tokens {
			if t > 0 {
				b = append(b, ',')
			}
			b = w.appendEntry(b, id, c.LogProbs[t], topOf(c, t))
		}
		b = append(b, "]},"...)
	} else {
		b = append(b, "null,"...)
	}
	b = j.appendStop(b, i, c)
	b = append(b, `,"token_ids":`...)
	if or(j.request.ReturnTokenIDs, false) {
		b = appendIDs(b, c.Tokens)
	} else {
		b = append(b, "null"...)
	}
	if j.request.XArgs.Entropy {
		b = appendEntropies(b, c.Entropies)
	}
	return append(b, `,"routed_experts":null}`...)
}

func appendEntropies(b []byte, entropies []float32) []byte {
	b = append(b, `,"token_entropies":[`...)
	for i, h := range entropies {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendFloat(b, h)
	}
	return append(b, ']')
}

// appendUsage appends the value of "usage".
func (j *job) appendUsage(b []byte, completion, cached int) []byte {
	usage := map[string]any{"prompt_tokens": len(j.prompt.tokens), "completion_tokens": completion,
		"total_tokens": len(j.prompt.tokens) + completion}
	details := map[string]any{"cached_tokens": cached, "multimodal_tokens": nil}
	if len(j.prompt.images) > 0 {
		details["multimodal_tokens"] = j.prompt.imageTokens
	}
	usage["prompt_tokens_details"] = details
	raw, err := json.Marshal(usage)
	if err != nil { // a bug: the map is made of numbers
		return append(b, "null"...)
	}
	return append(b, raw...)
}

// appendHead appends the fields that open a response of the given object type.
func (j *job) appendHead(b []byte, object string) []byte {
	b = append(b, `{"id":`...)
	b = appendString(b, []byte(j.id))
	b = append(b, `,"object":"`...)
	b = append(b, object...)
	b = append(b, `","created":`...)
	b = strconv.AppendInt(b, j.created, 10)
	b = append(b, `,"model":`...)
	return appendString(b, []byte(j.server.options.Name))
}

// response is the whole body of a chat completion.
func (j *job) response(result *qwenvl.Result) []byte {
	completion := 0
	for i := range result.Choices {
		completion += len(result.Choices[i].Tokens)
	}
	b := make([]byte, 0, 1024+len(j.prompt.tokens)*4+completion*96)
	b = j.appendHead(b, "chat.completion")
	b = append(b, `,"choices":[`...)
	for i := range result.Choices {
		if i > 0 {
			b = append(b, ',')
		}
		b = j.appendChoice(b, i, &result.Choices[i])
	}
	b = append(b, `],"service_tier":null,"system_fingerprint":`...)
	b = appendString(b, []byte(j.server.fingerprint))
	b = append(b, `,"usage":`...)
	b = j.appendUsage(b, completion, result.CachedTokens)
	b = append(b, `,"prompt_logprobs":null,"prompt_token_ids":`...)
	if or(j.request.ReturnTokenIDs, false) {
		b = appendIDs(b, j.prompt.tokens)
	} else {
		b = append(b, "null"...)
	}
	return append(b, `,"prompt_text":null,"kv_transfer_params":null,"metrics":null}`...)
}
