package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"

	"github.com/spf13/cobra"

	"github.com/uadt-train/uadt-train/internal/serve"
)

// serveCommand runs the native engine as a vLLM-compatible server.
func (m *Main) serveCommand(w *watch) *cobra.Command {
	var dir, address, name, level string
	var maxLen, maxImages int
	cmd := &cobra.Command{
		Use: "serve --model DIR", Short: "serve a model with the native engine, as vLLM would", Args: cobra.NoArgs,
		Long: `serve answers the part of vLLM's HTTP API that a reinforcement-learning client
uses: chat completions with images, log-probabilities and token ids, pause,
resume and weight reloads. The engine is for small models on a CPU. It listens on
loopback by default and has no authentication.`,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if dir == "" {
				return usagef("serve: --model names no directory")
			}
			if !slices.Contains([]string{"debug", "info", "warn", "error"}, level) {
				return usagef("serve: --log-level %s is none of debug, info, warn, error", level)
			}
			log := m.logger(level, "text")
			server, err := serve.New(serve.Options{Dir: dir, Name: name, MaxModelLen: maxLen, MaxImages: maxImages, Log: log})
			if err != nil {
				return err
			}
			if err := server.Listen(address); err != nil {
				return errors.Join(err, server.Close())
			}
			fmt.Fprintf(m.Stderr, "serving %s as %s at %s\n", dir, name, server.URL())
			return server.Serve(w.admit)
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "model", "", "Hugging Face directory of a Qwen2.5-VL")
	f.StringVar(&address, "addr", "127.0.0.1:8000", "address to listen on; port 0 picks a free one")
	f.StringVar(&name, "name", "policy", "served model name")
	f.IntVar(&maxLen, "max-model-len", 0, "most tokens of prompt and response (default the model's)")
	f.IntVar(&maxImages, "max-images", 6, "most images of a prompt")
	f.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	return cmd
}

// serveMetrics serves handler at address until undo.
func serveMetrics(address string, handler http.Handler, undo *closers) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("log.prometheus: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", handler)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: closeTimeout}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	undo.add(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			return fmt.Errorf("metrics server: %w", err)
		}
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("metrics server: %w", err)
		}
		return nil
	})
	return nil
}
