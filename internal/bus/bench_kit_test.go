package bus

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// BenchOptions size a measurement of the bus against the machine under it.
type BenchOptions struct {
	// Dir is where the stream and the appended file lie: the disk that is
	// measured. Required.
	Dir string
	// Groups is how many values are sent. Default 400.
	Groups int
	// Bytes is the size of one. Default 819,200: 16 traces of 4,096 tokens with
	// three 4-byte fields.
	Bytes int
	// Publishers is how many connections publish at once. Default 4.
	Publishers int
	// TCP connects over loopback instead of in the process. Default false.
	TCP bool
}

// BenchResult is what was measured, all in one run and one after the other. MB
// are 10^6 bytes.
type BenchResult struct {
	Name          string  `json:"name"` // "bus"
	Groups        int     `json:"groups"`
	Bytes         int     `json:"bytes"`
	Transport     string  `json:"transport"`       // tcp or process
	GroupsPerS    float64 `json:"groups_per_s"`    // publish to consume, through a file stream
	MBPerS        float64 `json:"mb_per_s"`        // the same in bytes
	LoopbackMBPS  float64 `json:"loopback_mb_s"`   // one TCP connection, same bytes in same pieces
	AppendMBPS    float64 `json:"append_mb_s"`     // buffered append to one file, same
	ShareOfBound  float64 `json:"share_of_bound"`  // MBPerS / min(loopback, append)
	GoalShare     float64 `json:"goal_share"`      // 0.7
	GoalGroupsPer float64 `json:"goal_groups_per"` // 200
}

// Bench sends values of the size of a trace group through a file stream from
// several publishers to one follower, and measures the two bounds with the same
// bytes: a loopback TCP stream and a buffered append to a file.
func Bench(ctx context.Context, options BenchOptions) (BenchResult, error) {
	if options.Groups == 0 {
		options.Groups = 400
	}
	if options.Bytes == 0 {
		options.Bytes = 819_200
	}
	if options.Publishers == 0 {
		options.Publishers = 4
	}
	result := BenchResult{
		Name: "bus", Groups: options.Groups, Bytes: options.Bytes, Transport: "process", GoalShare: 0.7, GoalGroupsPer: 200,
	}
	if options.TCP {
		result.Transport = "tcp"
	}
	data := make([]byte, options.Bytes)
	if _, err := rand.Read(data); err != nil {
		return result, err
	}
	total := float64(options.Groups) * float64(options.Bytes) / 1e6
	measure := func(what string, rate *float64, run func() (time.Duration, error)) error {
		took, err := run()
		if err != nil {
			return fmt.Errorf("bus bench, %s: %w", what, err)
		}
		*rate = total / took.Seconds()
		return nil
	}
	err := measure("loopback", &result.LoopbackMBPS, func() (time.Duration, error) { return benchLoopback(data, options.Groups) })
	if err == nil {
		err = measure("append", &result.AppendMBPS, func() (time.Duration, error) { return benchAppend(options.Dir, data, options.Groups) })
	}
	if err == nil {
		err = measure("bus", &result.MBPerS, func() (time.Duration, error) { return benchBus(ctx, options, data) })
	}
	if err != nil {
		return result, err
	}
	result.GroupsPerS = result.MBPerS * 1e6 / float64(options.Bytes)
	result.ShareOfBound = result.MBPerS / min(result.LoopbackMBPS, result.AppendMBPS)
	return result, nil
}

// benchLoopback streams pieces over one TCP connection.
func benchLoopback(data []byte, pieces int) (took time.Duration, err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, listener.Close()) }()
	received := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			_, err = io.CopyN(io.Discard, struct{ io.Reader }{conn}, int64(len(data))*int64(pieces))
			err = errors.Join(err, conn.Close())
		}
		received <- err
	}()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	start := time.Now()
	for range pieces {
		if _, err := conn.Write(data); err != nil {
			return 0, err
		}
	}
	err = <-received
	return time.Since(start), err
}

// benchAppend writes pieces to a fresh file, buffered by the system, and does
// not sync it: what a file stream can hope for.
func benchAppend(dir string, data []byte, pieces int) (took time.Duration, err error) {
	path := filepath.Join(dir, "append.bin")
	file, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, file.Close(), os.Remove(path)) }()
	start := time.Now()
	for range pieces {
		if _, err := file.Write(data); err != nil {
			return 0, err
		}
	}
	return time.Since(start), nil
}

// benchBus sends pieces through a file stream.
func benchBus(ctx context.Context, options BenchOptions, data []byte) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp(options.Dir, "bus-bench-")
	if err != nil {
		return 0, err
	}
	config := ServerOptions{Dir: dir}
	if options.TCP {
		config.Listen = "127.0.0.1:0"
	}
	server, err := Start(config)
	if err != nil {
		return 0, errors.Join(err, os.RemoveAll(dir))
	}
	took, err := benchServer(ctx, options, server, data)
	server.Close()
	return took, errors.Join(err, os.RemoveAll(dir))
}

// benchServer publishes from several connections and follows with one.
func benchServer(ctx context.Context, options BenchOptions, server *Server, data []byte) (time.Duration, error) {
	connect := func() (*Conn, error) {
		if options.TCP {
			return Dial(ctx, DialOptions{URL: server.URL(), Name: "bench"})
		}
		return server.Connect(ctx, "bench", "")
	}
	reader, err := connect()
	if err != nil {
		return 0, err
	}
	defer reader.Close()
	scope := Scope{Run: "bench", Incarnation: 1}
	size := int64(options.Groups)*int64(options.Bytes)*11/10 + 64<<20
	if err := reader.Setup(ctx, scope.Run, Limits{Traces: size}); err != nil {
		return 0, err
	}
	writers := make([]*Conn, options.Publishers)
	for i := range writers {
		if writers[i], err = connect(); err != nil {
			return 0, err
		}
		defer writers[i].Close()
	}
	inner, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var publishers sync.WaitGroup
	start := time.Now()
	for w, conn := range writers {
		publishers.Go(func() {
			log := conn.Log(scope, Traces)
			for i := w; i < options.Groups; i += len(writers) {
				if _, err := log.Create(inner, strconv.Itoa(i), Message{Schema: "bench/1", Data: data}); err != nil {
					stop(err)
					return
				}
			}
		})
	}
	left := options.Groups
	err = reader.Log(scope, Traces).Follow(inner, "*", func(e Entry) error {
		if left--; left == 0 {
			return io.EOF
		}
		return nil
	}, func(err error) { stop(err) })
	took := time.Since(start)
	stop(nil)
	publishers.Wait()
	if !errors.Is(err, io.EOF) {
		return 0, err
	}
	return took, nil
}
