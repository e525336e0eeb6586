package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"golang.org/x/sync/errgroup"
)

// probeServers asks all servers at the same time whether they are ready, each
// once, and names those that do not say so within serverPatience.
func probeServers(ctx context.Context, servers []string) error {
	client := &http.Client{
		Timeout: serverPatience,
		// One question, and as those that follow: directly, not by a proxy.
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	problems := make([]error, len(servers))
	var group errgroup.Group
	for i, server := range servers {
		group.Go(func() error {
			problems[i] = askHealth(ctx, client, server)
			return nil
		})
	}
	return errors.Join(group.Wait(), errors.Join(problems...))
}

func askHealth(ctx context.Context, client *http.Client, server string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimRight(server, "/")+"/health", nil)
	if err != nil {
		return fmt.Errorf("server %s: %w", server, err)
	}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("server %s: %w", server, err)
	}
	if response.StatusCode != http.StatusOK {
		err = fmt.Errorf("server %s: /health has status %d", server, response.StatusCode)
	}
	return errors.Join(err, response.Body.Close())
}
