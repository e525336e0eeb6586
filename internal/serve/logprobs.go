package serve

import (
	"strconv"

	"github.com/uadt-train/uadt-train/internal/qwenvl"
)

// logprobWriter writes the entries of "logprobs":{"content":[...]} of one
// choice, in order.
type logprobWriter struct {
	texts tokenTexts
	asIDs bool // "token_id:7" instead of the text
	top   int  // candidates asked for; -1 is all
}

// appendEntry appends the entry of one token. The candidates stand with the
// sampled token first, then by falling probability, as many as were asked for.
func (w *logprobWriter) appendEntry(b []byte, id int32, logProb float32, top []qwenvl.TokenLogProb) []byte {
	b = append(b, '{')
	b = w.appendToken(b, id, logProb, false)
	b = append(b, `,"top_logprobs":[`...)
	if len(top) > 0 {
		b = append(b, '{')
		b = w.appendToken(b, id, logProb, w.asIDs)
		b = append(b, '}')
		written := 1
		for _, candidate := range top {
			if candidate.Token == id || written == len(top) {
				continue
			}
			written++
			b = append(b, ',', '{')
			b = w.appendToken(b, candidate.Token, candidate.LogProb, w.asIDs)
			b = append(b, '}')
		}
	}
	w.texts.next(id)
	return append(b, ']', '}')
}

// appendToken appends token, logprob and bytes. nameBytes writes the bytes of
// the name instead of the token's, which vLLM does for candidates.
func (w *logprobWriter) appendToken(b []byte, id int32, logProb float32, nameBytes bool) []byte {
	text := w.texts.of(id)
	b = append(b, `"token":`...)
	name := text
	if w.asIDs {
		name = strconv.AppendInt([]byte("token_id:"), int64(id), 10)
	}
	b = appendString(b, name)
	b = append(b, `,"logprob":`...)
	b = appendLogProb(b, logProb)
	b = append(b, `,"bytes":`...)
	if nameBytes {
		return appendBytes(b, name)
	}
	return appendBytes(b, text)
}
