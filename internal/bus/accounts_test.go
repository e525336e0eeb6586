package bus_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/uadt-train/uadt-train/internal/bus"
)

// roles is a server with one key a role, set up for run "r" with two ranks.
type roles struct {
	server                       *bus.Server
	coordinator, worker, trainer string // seeds
	conn                         *bus.Conn
}

func startRoles(t *testing.T) *roles {
	t.Helper()
	r := &roles{}
	keys := &bus.RoleKeys{}
	for _, role := range []struct{ seed, public *string }{
		{&r.coordinator, &keys.Coordinator}, {&r.worker, &keys.Worker}, {&r.trainer, &keys.Trainer},
	} {
		var err error
		if *role.seed, *role.public, err = bus.NewKey(); err != nil {
			t.Fatal(err)
		}
	}
	server, err := bus.Start(bus.ServerOptions{Dir: t.TempDir(), Listen: "127.0.0.1:0", Run: "r", Keys: keys, Ranks: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	r.server, r.conn = server, connectTo(t, server, r.coordinator)
	if err := r.conn.Setup(patient(t), "r", bus.Limits{}); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *roles) dial(t *testing.T, seed string) *bus.Conn {
	t.Helper()
	conn, err := bus.Dial(patient(t), bus.DialOptions{URL: r.server.URL(), Name: "role", Seed: seed})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

// denied checks that the bus refuses, by name and before the deadline.
func denied(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, bus.ErrDenied) {
		t.Errorf("%s: got %v, want ErrDenied", what, err)
	}
}

func TestWorkerMayDoItsWork(t *testing.T) {
	noLeaks(t)
	r := startRoles(t)
	worker := r.dial(t, r.worker)
	ctx := patient(t)
	if _, err := r.conn.Queue(scope(1)).Put(ctx, "job", message("work")); err != nil {
		t.Fatal(err)
	}
	task, err := worker.Queue(bus.Scope{Run: "r"}).Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := worker.Log(scope(1), bus.Traces).Create(ctx, "job", bus.Message{Schema: "s/1", Data: noise(2 * bus.PartBytes)}); err != nil {
		t.Fatal(err)
	}
	if err := task.Done(ctx); err != nil {
		t.Fatal(err)
	}
	if err := worker.Log(scope(1), bus.Events).Append(ctx, "worker.w1", message("alive")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.conn.Values("r").Put(ctx, "policy", []byte("p")); err != nil {
		t.Fatal(err)
	}
	if v, err := worker.Values("r").Get(ctx, "policy"); err != nil || string(v.Data) != "p" {
		t.Fatalf("%q, %v", v.Data, err)
	}
	seen := errors.New("seen")
	if err := worker.Values("r").Watch(ctx, "policy", func(bus.Value) error { return seen }); !errors.Is(err, seen) {
		t.Fatal(err)
	}
	lease, err := worker.Values("r").Acquire(ctx, bus.LeaseOptions{Key: "lease.server.s1", Holder: "w1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := lease.Release(ctx); err != nil {
		t.Fatal(err)
	}
	if m, err := r.conn.Log(scope(1), bus.Traces).Get(ctx, "job"); err != nil || len(m.Data) != 2*bus.PartBytes {
		t.Fatalf("%d bytes, %v", len(m.Data), err)
	}
}

func TestWorkerMayDoNothingElse(t *testing.T) {
	noLeaks(t)
	r := startRoles(t)
	worker := r.dial(t, r.worker)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_, err := worker.Values("r").Put(ctx, "policy", []byte("mine"))
	denied(t, "writing the policy", err)
	_, err = worker.Queue(scope(1)).Put(ctx, "job", message("x"))
	denied(t, "writing jobs", err)
	_, err = worker.Log(scope(1), bus.Train).Create(ctx, "0.1", message("x"))
	denied(t, "writing batches", err)
	_, err = worker.Log(scope(1), bus.Scores).Create(ctx, "0.1", message("x"))
	denied(t, "writing scores", err)
	_, err = worker.Log(bus.Scope{Run: "other", Incarnation: 1}, bus.Traces).Create(ctx, "job", message("x"))
	denied(t, "writing another run's traces", err)
	denied(t, "writing a trainer's events", worker.Log(scope(1), bus.Events).Append(ctx, "trainer.0", message("x")))
	denied(t, "deleting streams", worker.Setup(ctx, "r", bus.Limits{}))
	_, err = worker.Values("r").Acquire(ctx, bus.LeaseOptions{Key: "lease.coordinator", Holder: "w1"})
	denied(t, "taking the coordinator's lease", err)
	denied(t, "purging traces", worker.Log(scope(1), bus.Traces).Purge(ctx, "job"))
}

func TestTrainerMayReadItsRanks(t *testing.T) {
	noLeaks(t)
	r := startRoles(t)
	ctx := patient(t)
	for _, rank := range []string{"0", "1"} {
		if err := r.conn.Mailbox(ctx, "r", bus.Train, rank); err != nil {
			t.Fatal(err)
		}
		if _, err := r.conn.Log(scope(1), bus.Train).Create(ctx, rank+".1.load", message("batch of "+rank)); err != nil {
			t.Fatal(err)
		}
	}
	// The trainer is another program in another language: a bare client.
	js := bareTrainer(t, r)
	consumer, err := js.Consumer(ctx, "TRAIN", bus.MailboxName("r", "1"))
	if err != nil {
		t.Fatal(err)
	}
	msg, err := consumer.Next(jetstream.FetchContext(ctx))
	if err != nil || string(msg.Data()) != "batch of 1" || msg.Subject() != "uadt.r.1.train.1.1.load" {
		t.Fatalf("%v, %v", msg, err)
	}
	if err := msg.DoubleAck(ctx); err != nil {
		t.Fatal(err)
	}
	trainer := r.dial(t, r.trainer)
	if _, err := trainer.Log(scope(1), bus.Scores).Create(ctx, "1.1", message("scores")); err != nil {
		t.Fatal(err)
	}
	if err := trainer.Log(scope(1), bus.Events).Append(ctx, "trainer.1", message("report")); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	_, err = trainer.Queue(scope(1)).Put(short, "job", message("x"))
	denied(t, "writing jobs", err)
	_, err = trainer.Log(scope(1), bus.Traces).Create(short, "job", message("x"))
	denied(t, "writing traces", err)
	_, err = trainer.Log(scope(1), bus.Scores).Create(short, "2.1", message("x"))
	denied(t, "writing a foreign rank's scores", err)
	_, err = trainer.Queue(bus.Scope{Run: "r"}).Next(short)
	denied(t, "pulling jobs", err)
}

// bareTrainer connects with the trainer's key and no help of this package.
func bareTrainer(t *testing.T, r *roles) jetstream.JetStream {
	t.Helper()
	pair, err := nkeys.FromSeed([]byte(r.trainer))
	if err != nil {
		t.Fatal(err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(r.server.URL(), nats.Nkey(public, pair.Sign), nats.CustomInboxPrefix(bus.InboxPrefix(public)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func TestStrangersAreRefused(t *testing.T) {
	noLeaks(t)
	r := startRoles(t)
	seed, _, err := bus.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	for name, seed := range map[string]string{"without a key": "", "with an unknown key": seed} {
		if _, err := bus.Dial(patient(t), bus.DialOptions{URL: r.server.URL(), Name: name, Seed: seed}); !errors.Is(err, bus.ErrDenied) {
			t.Errorf("%s: got %v, want ErrDenied", name, err)
		}
	}
	if _, err := r.server.Connect(patient(t), "in process", ""); !errors.Is(err, bus.ErrDenied) {
		t.Errorf("in process without a key: got %v", err)
	}
}

func TestListenersAreClosedByDefault(t *testing.T) {
	noLeaks(t)
	for _, address := range []string{"0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:0"} {
		if _, err := bus.Start(bus.ServerOptions{Dir: t.TempDir(), Listen: address}); !errors.Is(err, bus.ErrOpen) {
			t.Errorf("%s without keys: got %v, want ErrOpen", address, err)
		}
	}
	for _, address := range []string{"127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000"} {
		if _, err := bus.Start(bus.ServerOptions{Dir: t.TempDir(), Listen: address}); err == nil {
			t.Errorf("%s: no error", address)
		}
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := taken.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := bus.Start(bus.ServerOptions{Dir: t.TempDir(), Listen: taken.Addr().String()}); err == nil {
		t.Error("a taken address was no error")
	}
	if _, err := bus.Start(bus.ServerOptions{}); err == nil {
		t.Error("a server without a directory started")
	}
	bad := &bus.RoleKeys{Coordinator: "x"}
	if _, err := bus.Start(bus.ServerOptions{Dir: t.TempDir(), Run: "r", Keys: bad}); err == nil {
		t.Error("keys that are none were accepted")
	}
}

func TestTLSNeedsAClientCertificate(t *testing.T) {
	noLeaks(t)
	files := certificates(t)
	server, err := bus.Start(bus.ServerOptions{Dir: t.TempDir(), Listen: "127.0.0.1:0", TLS: files})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	conn, err := bus.Dial(patient(t), bus.DialOptions{URL: server.URL(), Name: "tls", TLS: files})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	if err := conn.Setup(patient(t), "r", bus.Limits{}); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	if _, err := bus.Dial(short, bus.DialOptions{URL: server.URL(), Name: "bare"}); err == nil {
		t.Fatal("connected without a certificate")
	}
}

// certificates makes an authority and one certificate for both sides.
func certificates(t *testing.T) *bus.TLS {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, kind string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: data}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cert := write("cert.pem", "CERTIFICATE", der)
	return &bus.TLS{CA: cert, Cert: cert, Key: write("key.pem", "EC PRIVATE KEY", secret)}
}
