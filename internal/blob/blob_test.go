package blob_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/uadt-train/uadt-train/internal/blob"
)

const token = "0123456789abcdef"

func noLeaks(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
}

func store(t *testing.T) *blob.Store {
	t.Helper()
	s, err := blob.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStore(t *testing.T) {
	s := store(t)
	ctx := context.Background()
	data := []byte("a fundus photograph")
	digest, err := s.Put(data)
	if err != nil || digest != blob.DigestOf(data) {
		t.Fatalf("%s, %v", digest, err)
	}
	if again, err := s.Put(data); err != nil || again != digest {
		t.Fatalf("%s, %v", again, err)
	}
	if got, err := s.Get(ctx, digest); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%q, %v", got, err)
	}
	other := blob.DigestOf([]byte("another"))
	if has, err := s.Has(digest); err != nil || !has {
		t.Fatalf("%v, %v", has, err)
	}
	if has, err := s.Has(other); err != nil || has {
		t.Fatalf("%v, %v", has, err)
	}
	if _, err := s.Get(ctx, other); !errors.Is(err, blob.ErrNotFound) || !strings.Contains(err.Error(), other) {
		t.Fatalf("got %v", err)
	}
	for _, bad := range []string{"", "../../etc/passwd", strings.ToUpper(digest), digest + "0", strings.Repeat("/", 64)} {
		if _, err := s.Get(ctx, bad); !errors.Is(err, blob.ErrDigest) {
			t.Errorf("%q: got %v, want ErrDigest", bad, err)
		}
		if _, err := s.Has(bad); !errors.Is(err, blob.ErrDigest) {
			t.Errorf("%q: got %v, want ErrDigest", bad, err)
		}
	}
}

func TestDamageIsSeenAndMended(t *testing.T) {
	s := store(t)
	data := []byte("a fundus photograph")
	digest, err := s.Put(data)
	if err != nil {
		t.Fatal(err)
	}
	path, err := s.Path(digest)
	if err != nil {
		t.Fatal(err)
	}
	for _, damaged := range [][]byte{data[:5], nil, []byte("a fundus photograpH")} {
		if err := os.WriteFile(path, damaged, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Get(context.Background(), digest); !errors.Is(err, blob.ErrCorrupt) || !strings.Contains(err.Error(), path) {
			t.Fatalf("got %v, want ErrCorrupt naming %s", err, path)
		}
		if _, err := s.Put(data); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Get(context.Background(), digest); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("not mended: %q, %v", got, err)
		}
	}
}

func TestWritersAtOnce(t *testing.T) {
	s := store(t)
	data := bytes.Repeat([]byte("x"), 1<<16)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if digest, err := s.Put(data); err != nil || digest != blob.DigestOf(data) {
				t.Errorf("%s, %v", digest, err)
			}
		})
	}
	wg.Wait()
	if got, err := s.Get(context.Background(), blob.DigestOf(data)); err != nil || !bytes.Equal(got, data) {
		t.Fatal(err)
	}
}

func serve(t *testing.T, s *blob.Store) *blob.Server {
	t.Helper()
	server, err := blob.Serve(blob.ServerOptions{Store: s, Token: token})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return server
}

func client(t *testing.T, options blob.ClientOptions) *blob.Client {
	t.Helper()
	options.Token = token
	c, err := blob.NewClient(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestServerAndClient(t *testing.T) {
	noLeaks(t)
	s := store(t)
	server := serve(t, s)
	c := client(t, blob.ClientOptions{URL: server.URL()})
	ctx := context.Background()
	data := bytes.Repeat([]byte("image"), 1000)
	digest, err := s.Put(data)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Get(ctx, digest); err != nil || !bytes.Equal(got, data) {
		t.Fatal(err)
	}
	if _, err := c.Get(ctx, blob.DigestOf([]byte("no"))); !errors.Is(err, blob.ErrNotFound) {
		t.Fatalf("got %v", err)
	}
	if _, err := c.Get(ctx, "no"); !errors.Is(err, blob.ErrDigest) {
		t.Fatalf("got %v", err)
	}
	path, err := s.Path(digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Get(ctx, digest); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("the second read was not from the cache: %v", err)
	}
	stranger, err := blob.NewClient(blob.ClientOptions{URL: server.URL(), Token: "wrong token of a stranger"})
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	if _, err := stranger.Get(ctx, digest); !errors.Is(err, blob.ErrDenied) {
		t.Fatalf("got %v, want ErrDenied", err)
	}
}

func TestServerStatusCodes(t *testing.T) {
	s := store(t)
	server := serve(t, s)
	digest, err := s.Put([]byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		method, path, auth string
		want               int
	}{
		{"GET", "/blob/" + digest, "Bearer " + token, 200},
		{"HEAD", "/blob/" + digest, "Bearer " + token, 200},
		{"GET", "/blob/" + digest, "", 401},
		{"GET", "/blob/" + digest, token, 401},
		{"GET", "/blob/" + digest, "Bearer " + token + "0", 401},
		{"POST", "/blob/" + digest, "Bearer " + token, 405},
		{"GET", "/blob/" + digest[1:], "Bearer " + token, 400},
		{"GET", "/blob/", "Bearer " + token, 400},
		{"GET", "/", "Bearer " + token, 404},
		{"GET", "/blob/" + blob.DigestOf(nil), "Bearer " + token, 404},
	} {
		request, err := http.NewRequest(tt.method, server.URL()+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if tt.auth != "" {
			request.Header.Set("Authorization", tt.auth)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		if err := response.Body.Close(); err != nil {
			t.Fatal(err)
		}
		if response.StatusCode != tt.want {
			t.Errorf("%s %s with %q: %d, want %d", tt.method, tt.path, tt.auth, response.StatusCode, tt.want)
		}
	}
	if _, err := blob.Serve(blob.ServerOptions{Store: s, Token: "short"}); err == nil {
		t.Error("a short token was accepted")
	}
}

// flaky is a server that fails, lies or answers by script.
func flaky(t *testing.T, answers ...func(http.ResponseWriter)) (url string, asked *atomic.Int32) {
	t.Helper()
	asked = new(atomic.Int32)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n := int(asked.Add(1)) - 1
		answers[min(n, len(answers)-1)](w)
	}))
	t.Cleanup(server.Close)
	return server.URL, asked
}

func write(data []byte) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) { _, _ = w.Write(data) }
}

func status(code int) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) { w.WriteHeader(code) }
}

func TestClientRetriesWhatMayPass(t *testing.T) {
	noLeaks(t)
	data := []byte("good")
	url, asked := flaky(t, status(500), write([]byte("evil")), write(data))
	c := client(t, blob.ClientOptions{URL: url})
	if got, err := c.Get(context.Background(), blob.DigestOf(data)); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%q, %v", got, err)
	}
	if asked.Load() != 3 {
		t.Fatalf("asked %d times", asked.Load())
	}
	url, asked = flaky(t, write([]byte("evil")))
	c = client(t, blob.ClientOptions{URL: url, Attempts: 2})
	if _, err := c.Get(context.Background(), blob.DigestOf(data)); !errors.Is(err, blob.ErrCorrupt) || asked.Load() != 2 {
		t.Fatalf("got %v after %d attempts", err, asked.Load())
	}
	url, asked = flaky(t, write(make([]byte, 100)))
	c = client(t, blob.ClientOptions{URL: url, MaxBlob: 99})
	if _, err := c.Get(context.Background(), blob.DigestOf(make([]byte, 100))); !errors.Is(err, blob.ErrTooLarge) || asked.Load() != 1 {
		t.Fatalf("got %v after %d attempts", err, asked.Load())
	}
}

func TestOneFetchForAll(t *testing.T) {
	noLeaks(t)
	data := []byte("shared")
	release, arrived := make(chan struct{}), make(chan struct{}, 8)
	url, asked := flaky(t, func(w http.ResponseWriter) { arrived <- struct{}{}; <-release; write(data)(w) })
	c := client(t, blob.ClientOptions{URL: url})
	leaver, leave := context.WithCancel(context.Background())
	left := make(chan error, 1)
	go func() {
		_, err := c.Get(leaver, blob.DigestOf(data))
		left <- err
	}()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if got, err := c.Get(context.Background(), blob.DigestOf(data)); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	<-arrived
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(release)
	wg.Wait()
	if n := asked.Load(); n > 2 { // 2: the leaver may have been alone at first
		t.Fatalf("asked %d times", n)
	}
}

func TestCacheIsBounded(t *testing.T) {
	noLeaks(t)
	s := store(t)
	server := serve(t, s)
	var digests []string
	for i := range 4 {
		digest, err := s.Put(fmt.Appendf(nil, "%09d!", i)) // 10 bytes
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, digest)
	}
	c := client(t, blob.ClientOptions{URL: server.URL(), CacheBytes: 25, Attempts: 1})
	for _, i := range []int{0, 1, 0, 2} { // 1 is the least recently used when 2 comes
		if _, err := c.Get(context.Background(), digests[i]); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range digests {
		path, err := s.Path(d)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	for i, kept := range []bool{true, false, true, false} {
		if _, err := c.Get(context.Background(), digests[i]); (err == nil) != kept {
			t.Errorf("blob %d: %v, want kept %v", i, err, kept)
		}
	}
}
