package encode_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/uadt-train/uadt-train/internal/encode"
	"github.com/uadt-train/uadt-train/internal/micro"
	"github.com/uadt-train/uadt-train/internal/safetensors"
	"github.com/uadt-train/uadt-train/internal/tokenizer"
	"github.com/uadt-train/uadt-train/internal/vision"
	"github.com/uadt-train/uadt-train/rollout"
)

// pipeVariable makes the test binary answer requests instead of running tests:
// tests/python builds it with go test -c and compares its answers with those of
// transformers.
const pipeVariable = "UADT_ENCODE_PIPE"

func TestMain(m *testing.M) {
	if os.Getenv(pipeVariable) == "" {
		os.Exit(m.Run())
	}
	if err := serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// request is one line of JSON; Op says which fields count.
type request struct {
	Op       string            `json:"op"`
	Dir      string            `json:"dir"`
	Text     string            `json:"text"`
	Texts    []string          `json:"texts"`
	IDs      []int32           `json:"ids"`
	Skip     bool              `json:"skip"`
	Path     string            `json:"path"` // an image
	Out      string            `json:"out"`  // where raw numbers go
	Height   int               `json:"height"`
	Width    int               `json:"width"`
	Messages []rollout.Message `json:"messages"` // an image's digest is its path
	Options  initOptions       `json:"options"`
}

// initOptions is the part of micro.Options that the tests vary.
type initOptions struct {
	Seed   uint64            `json:"seed"`
	Vocab  int               `json:"vocab"`
	Untied bool              `json:"untied"`
	DType  safetensors.DType `json:"dtype"`
	Hidden int               `json:"hidden"`
	Heads  int               `json:"heads"`
}

// answer is one line of JSON.
type answer struct {
	IDs   []int32 `json:"ids,omitempty"`
	Text  string  `json:"text,omitempty"`
	Grid  [3]int  `json:"grid"`
	Error string  `json:"error,omitempty"`
}

// files reads images by path.
type files struct{}

func (files) Get(_ context.Context, path string) ([]byte, error) { return os.ReadFile(path) }

// session keeps what was opened between requests.
type session struct {
	encoders   map[string]*encode.Encoder
	tokenizers map[string]*tokenizer.Tokenizer
}

func serve(in io.Reader, out io.Writer) error {
	s := session{map[string]*encode.Encoder{}, map[string]*tokenizer.Tokenizer{}}
	requests, answers := json.NewDecoder(bufio.NewReader(in)), json.NewEncoder(out)
	for {
		var r request
		if err := requests.Decode(&r); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		a, err := s.answer(r)
		if err != nil {
			a.Error = err.Error()
		}
		if err := answers.Encode(a); err != nil {
			return err
		}
	}
}

func (s *session) answer(r request) (answer, error) {
	switch r.Op {
	case "init":
		digest, err := micro.Init(r.Dir, micro.Options{Corpus: r.Texts, Seed: r.Options.Seed, Vocab: r.Options.Vocab,
			Untied: r.Options.Untied, DType: r.Options.DType, Hidden: r.Options.Hidden, Heads: r.Options.Heads})
		return answer{Text: digest}, err
	case "encode", "decode", "stream":
		return s.tokenize(r)
	case "image", "pixels", "resize":
		return picture(r)
	case "prompt", "record":
		e, err := s.encoder(r.Dir)
		if err != nil {
			return answer{}, err
		}
		encoded, err := e.Encode(context.Background(), rollout.Question{ID: "q", Messages: r.Messages}, r.Text)
		if r.Op == "record" {
			return answer{IDs: encoded.Response}, err
		}
		return answer{IDs: encoded.Prompt}, err
	}
	return answer{}, fmt.Errorf("unknown op %q", r.Op)
}

func (s *session) tokenize(r request) (answer, error) {
	t, ok := s.tokenizers[r.Dir]
	if !ok {
		var err error
		if t, err = tokenizer.Open(r.Dir); err != nil {
			return answer{}, err
		}
		s.tokenizers[r.Dir] = t
	}
	switch r.Op {
	case "encode":
		return answer{IDs: t.Encode(r.Text)}, nil
	case "decode":
		return answer{Text: t.Decode(r.IDs, r.Skip)}, nil
	}
	d, text := t.NewDecoder(r.Skip), ""
	for _, id := range r.IDs {
		text += d.Next(id)
	}
	return answer{Text: text + d.Flush()}, nil
}

func (s *session) encoder(dir string) (*encode.Encoder, error) {
	if e, ok := s.encoders[dir]; ok {
		return e, nil
	}
	e, err := encode.Open(dir, 0, files{})
	if err == nil {
		s.encoders[dir] = e
	}
	return e, err
}

// picture decodes, resizes or preprocesses an image and writes raw numbers:
// bytes for pixels and resize, float32 for image.
func picture(r request) (answer, error) {
	data, err := os.ReadFile(r.Path)
	if err != nil {
		return answer{}, err
	}
	if r.Op == "image" {
		settings, err := os.ReadFile(r.Dir + "/" + encode.PreprocessorFile)
		if err != nil {
			return answer{}, err
		}
		c, err := vision.ParseConfig(settings)
		if err != nil {
			return answer{}, err
		}
		p, err := vision.Preprocess(data, c)
		if err != nil {
			return answer{}, err
		}
		raw := make([]byte, 0, 4*len(p.Pixels))
		if raw, err = binary.Append(raw, binary.LittleEndian, p.Pixels); err != nil {
			return answer{}, err
		}
		return answer{Grid: p.Grid}, os.WriteFile(r.Out, raw, 0o600)
	}
	m, err := vision.Decode(data, 0)
	if err != nil {
		return answer{}, err
	}
	if r.Op == "resize" {
		m = m.Resize(r.Height, r.Width)
	}
	return answer{Grid: [3]int{1, m.Height, m.Width}}, os.WriteFile(r.Out, m.Pix, 0o600)
}
