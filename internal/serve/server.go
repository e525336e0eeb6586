package serve

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/uadt-train/uadt-train/internal/checkpoint"
	"github.com/uadt-train/uadt-train/internal/qwenvl"
	"github.com/uadt-train/uadt-train/internal/tokenizer"
	"github.com/uadt-train/uadt-train/internal/vision"
)

// Server serves one checkpoint. Use Handler with an HTTP server of your own, or
// Listen and Serve. Close it after use.
type Server struct {
	options     Options
	config      qwenvl.Config
	engine      *qwenvl.Engine
	tokens      *tokenizer.Tokenizer
	template    tokenizer.Template
	vision      vision.Config
	images      *imageStore
	fingerprint string
	started     time.Time
	reload      sync.Mutex // one change of weights at a time

	listener net.Listener
	http     *http.Server
}

// ErrInUse is wrapped by Listen when another process has the port.
var ErrInUse = errors.New("address is in use")

// New loads a checkpoint and starts an engine on it.
func New(options Options) (*Server, error) {
	options, err := options.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Server{options: options, images: newImageStore(options.CacheBytes), started: options.Now()}
	model, err := qwenvl.LoadModel(options.Dir)
	if err != nil {
		return nil, fmt.Errorf("load model: %w", err)
	}
	s.config = model.Config
	if s.tokens, err = tokenizer.Open(options.Dir); err != nil {
		return nil, err
	}
	if s.template, err = tokenizer.OpenTemplate(options.Dir); err != nil {
		return nil, err
	}
	files, err := checkpoint.Open(options.Dir)
	if err != nil {
		return nil, err
	}
	ends, err := s.readSideFiles(files)
	if err := errors.Join(err, files.Close()); err != nil {
		return nil, fmt.Errorf("%s: %w", options.Dir, err)
	}
	s.engine, err = qwenvl.New(model, qwenvl.Options{MaxSequences: options.MaxSequences, MaxLength: options.MaxModelLen,
		Workers: options.Workers, Seed: options.Seed, CacheBytes: options.CacheBytes, EndToken: ends.primary, OtherEnds: ends.others})
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(files.Config())
	s.fingerprint = fmt.Sprintf("uadt-train-%x", digest[:4])
	s.http = &http.Server{Handler: s.Handler(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 10 * time.Minute}
	return s, nil
}

// readSideFiles reads preprocessing and end tokens, and checks that tokenizer,
// preprocessing and model belong together.
func (s *Server) readSideFiles(files *checkpoint.Model) (endTokens, error) {
	raw, err := files.File("preprocessor_config.json")
	if err != nil {
		return endTokens{}, err
	}
	if s.vision, err = vision.ParseConfig(raw); err != nil {
		return endTokens{}, err
	}
	if s.options.MaxPixels > 0 {
		s.vision.MaxPixels = s.options.MaxPixels
		s.vision.MinPixels = min(s.vision.MinPixels, s.options.MaxPixels)
	}
	v := s.config.Vision
	var problems []error
	if s.vision.PatchSize != v.PatchSize || s.vision.TemporalPatchSize != v.TemporalPatchSize || s.vision.MergeSize != v.MergeSize {
		problems = append(problems, fmt.Errorf(
			"preprocessor_config.json has patch %d, temporal patch %d, merge %d; config.json has %d, %d, %d",
			s.vision.PatchSize, s.vision.TemporalPatchSize, s.vision.MergeSize, v.PatchSize, v.TemporalPatchSize, v.MergeSize))
	}
	if s.tokens.Size() > s.config.VocabSize {
		problems = append(problems, fmt.Errorf("tokenizer.json has %d tokens, the model %d", s.tokens.Size(), s.config.VocabSize))
	}
	for name, want := range map[string]int{tokenizer.ImagePad: s.config.ImageToken,
		tokenizer.VisionStart: s.config.VisionStart, tokenizer.VisionEnd: s.config.VisionEnd} {
		if id, ok := s.tokens.ID(name); !ok || int(id) != want {
			problems = append(problems, fmt.Errorf("tokenizer.json gives %s the id %d (found: %v), config.json %d", name, id, ok, want))
		}
	}
	ends, err := s.endTokens(files)
	return ends, errors.Join(append(problems, err)...)
}

// endTokens are the tokens that end a response: the tokenizer's, whose stop is
// reported without a token, and the others of generation_config.json.
type endTokens struct {
	primary int32
	others  []int32
}

func (s *Server) endTokens(files *checkpoint.Model) (endTokens, error) {
	ends := endTokens{primary: -1}
	if id, ok := s.tokens.ID(tokenizer.EndOfTurn); ok {
		ends.primary = id
	}
	ids := s.config.EOS
	if raw := files.GenerationConfig(); raw != nil {
		var generation struct {
			EOS json.RawMessage `json:"eos_token_id"`
		}
		if err := json.Unmarshal(raw, &generation); err != nil {
			return ends, fmt.Errorf("generation_config.json: %w", err)
		}
		var many []int
		var one int
		switch {
		case len(generation.EOS) == 0 || string(generation.EOS) == "null":
		case json.Unmarshal(generation.EOS, &many) == nil:
			ids = many
		case json.Unmarshal(generation.EOS, &one) == nil:
			ids = []int{one}
		default:
			return ends, fmt.Errorf("generation_config.json: eos_token_id is %s, want a number or a list", generation.EOS)
		}
	}
	for _, id := range ids {
		if id < 0 || id >= s.config.VocabSize {
			return ends, fmt.Errorf("end token %d is outside the vocabulary of %d", id, s.config.VocabSize)
		}
		if int32(id) != ends.primary {
			ends.others = append(ends.others, int32(id))
		}
	}
	return ends, nil
}

// Listen opens a TCP address such as "127.0.0.1:8000"; port 0 picks a free one.
// A port that another process has gives an error that wraps ErrInUse.
func (s *Server) Listen(address string) error {
	listener, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("listen on %s: %w: %w", address, ErrInUse, err)
	}
	if err != nil {
		return fmt.Errorf("listen on %s: %w", address, err)
	}
	s.listener = listener
	return nil
}

// URL is the base address of a listening server, "http://host:port".
func (s *Server) URL() string { return "http://" + s.listener.Addr().String() }

// Serve answers requests until ctx ends, lets those in flight finish for
// ShutdownTimeout, and closes the server. Listen comes first.
func (s *Server) Serve(ctx context.Context) error {
	if s.listener == nil {
		return errors.New("serve: Listen was not called")
	}
	failed := make(chan error, 1)
	go func() { failed <- s.http.Serve(s.listener) }() // ends at Shutdown or Close below
	select {
	case err := <-failed:
		return errors.Join(fmt.Errorf("serve: %w", err), s.Close())
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.options.ShutdownTimeout)
	defer cancel()
	err := s.http.Shutdown(grace)
	if errors.Is(err, context.DeadlineExceeded) {
		s.options.Log.Warn("shutdown: requests were cut off", "after", s.options.ShutdownTimeout, "running", s.engine.Stats().Running)
		err = s.http.Close()
	}
	<-failed
	return errors.Join(err, s.Close())
}

// Close ends the engine and closes the listener; requests in flight get errors.
func (s *Server) Close() error {
	err := s.http.Close()
	if s.listener != nil {
		// After Serve the HTTP server has closed it already.
		if failed := s.listener.Close(); !errors.Is(failed, net.ErrClosed) {
			err = errors.Join(err, failed)
		}
	}
	s.engine.Close()
	return err
}
