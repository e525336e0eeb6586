package bus

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
)

// RoleKeys are the public nkeys of the three roles, one each.
type RoleKeys struct{ Coordinator, Worker, Trainer string }

// NewKey makes an nkey pair: the seed is the secret of the role, the public key
// goes into RoleKeys. For deployments that make their keys by program; the tool
// nk does the same by hand.
func NewKey() (seed, public string, err error) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		return "", "", fmt.Errorf("bus: making an nkey: %w", err)
	}
	secret, err := pair.Seed()
	if err != nil {
		return "", "", fmt.Errorf("bus: making an nkey: %w", err)
	}
	if public, err = pair.PublicKey(); err != nil {
		return "", "", fmt.Errorf("bus: making an nkey: %w", err)
	}
	return string(secret), public, nil
}

// account is the one account of the embedded server.
const account = "UADT"

// users renders the least that each role needs, for one run. Streams,
// consumers and the bucket are made by the coordinator alone.
func (k *RoleKeys) users(run string, ranks int) ([]*server.NkeyUser, *server.Account, error) {
	for role, key := range map[string]string{"coordinator": k.Coordinator, "worker": k.Worker, "trainer": k.Trainer} {
		if !nkeys.IsValidPublicUserKey(key) {
			return nil, nil, fmt.Errorf("bus: key of role %s is no public user nkey: %q", role, key)
		}
	}
	all := server.NewAccount(account)
	user := func(key string, publish, subscribe []string) *server.NkeyUser {
		return &server.NkeyUser{Nkey: key, Account: all, Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: publish},
			Subscribe: &server.SubjectPermission{Allow: append(subscribe, InboxPrefix(key)+".>")},
		}}
	}
	any := []string{">"}
	return []*server.NkeyUser{
		user(k.Coordinator, any, any),
		user(k.Worker, workerMay(run), nil),
		user(k.Trainer, trainerMay(run, ranks), nil),
	}, all, nil
}

// readsValues lists what reading the bucket takes: its description, single
// keys of the run, and a watcher on them.
func readsValues(run string) []string {
	kv := "KV_" + bucket
	return []string{
		"$JS.API.STREAM.INFO." + kv,
		"$JS.API.DIRECT.GET." + kv + ".$KV." + bucket + "." + run + ".>",
		"$JS.API.CONSUMER.CREATE." + kv + ".*.$KV." + bucket + "." + run + ".>",
		"$JS.API.CONSUMER.DELETE." + kv + ".>",
		"$JS.FC." + kv + ".>", // flow control of the watcher
	}
}

// workerMay lists what a worker publishes: pulls and acks of jobs, traces, its
// reports, the leases of its servers.
func workerMay(run string) []string {
	jobs := streams[Jobs]
	return append(readsValues(run),
		"$JS.API.CONSUMER.INFO."+jobs+"."+run,
		"$JS.API.CONSUMER.MSG.NEXT."+jobs+"."+run,
		"$JS.ACK."+jobs+"."+run+".>",
		prefix+"."+run+".*."+string(Traces)+".>",
		prefix+"."+run+".*."+string(Events)+".worker.>",
		keySubject(run+".lease.server.>"),
	)
}

// trainerMay lists what a trainer publishes: reads of its ranks' commands,
// scores, and its reports.
func trainerMay(run string, ranks int) []string {
	train := streams[Train]
	may := append(readsValues(run),
		"$JS.API.STREAM.INFO."+train,
		"$JS.API.DIRECT.GET."+train, // by sequence: the parts of a manifest
		prefix+"."+run+".*."+string(Events)+".trainer.>",
	)
	for rank := range ranks {
		r := strconv.Itoa(rank)
		durable := MailboxName(run, r)
		may = append(may,
			"$JS.API.CONSUMER.INFO."+train+"."+durable,
			"$JS.API.CONSUMER.MSG.NEXT."+train+"."+durable,
			"$JS.ACK."+train+"."+durable+".>",
			prefix+"."+run+".*."+string(Scores)+"."+r+".>",
		)
	}
	return may
}

// InboxPrefix is the prefix of the answers to a connection of the role with this
// nkey (seed or public key): no role can listen to another's.
func InboxPrefix(key string) string {
	if key == "" {
		return "_INBOX"
	}
	if strings.HasPrefix(key, "S") {
		pair, err := nkeys.FromSeed([]byte(key))
		if err != nil {
			return "_INBOX" // refused when it is used to sign
		}
		if key, err = pair.PublicKey(); err != nil {
			return "_INBOX"
		}
	}
	return "_INBOX_" + key
}

// enableJetStream gives the account its storage.
func (s *Server) enableJetStream() error {
	a, err := s.inner.LookupAccount(account)
	if err == nil {
		err = a.EnableJetStream(nil, nil)
	}
	if err != nil {
		return fmt.Errorf("bus: enabling JetStream for account %s: %w", account, err)
	}
	return nil
}

// TLS names the PEM files of one side.
type TLS struct {
	CA   string // whom to trust
	Cert string
	Key  string
}

// load reads the files.
func (t *TLS) load() (*tls.Config, *x509.CertPool, error) {
	pem, err := os.ReadFile(t.CA)
	if err != nil {
		return nil, nil, fmt.Errorf("bus: certificate authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, nil, errors.New("bus: no certificate in " + t.CA)
	}
	pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, nil, fmt.Errorf("bus: certificate %s with key %s: %w", t.Cert, t.Key, err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}, pool, nil
}

// server requires and verifies client certificates.
func (t *TLS) server() (*tls.Config, error) {
	config, pool, err := t.load()
	if err != nil {
		return nil, err
	}
	config.ClientCAs, config.ClientAuth = pool, tls.RequireAndVerifyClientCert
	return config, nil
}

// client verifies the server.
func (t *TLS) client() (*tls.Config, error) {
	config, pool, err := t.load()
	if err != nil {
		return nil, err
	}
	config.RootCAs = pool
	return config, nil
}
