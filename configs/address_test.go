package configs

import (
	"strings"
	"testing"
)

// Addresses that cannot work are refused where the recipe is read, with the key,
// the place and the value, and nothing else is.
func TestAddresses(t *testing.T) {
	for _, tt := range []struct{ set, want string }{
		{"rollout.servers=localhost:8000", `rollout.servers: "localhost:8000" is no address, want one such as http://host:8000`},
		{"rollout.servers=[http://a:8000, 10.0.0.7:8000]", `rollout.servers: "10.0.0.7:8000" is no address`},
		{"rollout.servers=ftp://a", `rollout.servers: "ftp://a" is no address`},
		{"rollout.servers=http://", `rollout.servers: "http://" is no address`},
		{"rollout.servers=http://:8000", `rollout.servers: "http://:8000" is no address`},
		{"rollout.servers=http://a?x=1", `rollout.servers: "http://a?x=1" is no address`},
		{`rollout.servers=["http://a b"]`, `rollout.servers: "http://a b" is no address`},
		{"rollout.servers=http://a:70000", `rollout.servers: "http://a:70000" has the port "70000"`},
		{"rollout.servers=http://a:0", `rollout.servers: "http://a:0" has the port "0"`},
		{"rollout.servers=http://a:8000/v1", `rollout.servers: "http://a:8000/v1" has the path /v1, want only http://a:8000`},
		{"rollout.servers=[http://a:80, http://b, http://A/]", `rollout.servers: "http://A/" is the server of "http://a:80"`},
		{"rollout.servers=[http://a, http://a]", `rollout.servers: "http://a" is the server of "http://a"`},
		{"reward.judge_url=localhost:8000/v1", `reward.judge_url: "localhost:8000/v1" is no address, want one such as http://host:8000`},
		{"reward.judge_url=https://?", `reward.judge_url: "https://?" is no address`},
		{"bus.url=http://a:4222", `bus.url: "http://a:4222" is no address, want one such as nats://host:4222`},
		{"bus.url=nats://a,", `bus.url: "" is no address`},
		{"bus.url=nats://a:4222/x", `bus.url: "nats://a:4222/x" has the path /x, want only nats://a:4222`},
		{"bus.url=nats://", `bus.url: "nats://" is no address`},
		{"bus.url=a:port", `bus.url: "a:port" is no address`},
	} {
		_, err := Load(Request{File: write(t, minimal), Set: []string{tt.set}})
		if err == nil || !strings.Contains(err.Error(), "--set: "+tt.want) || strings.Count(err.Error(), "\n") != 1 {
			t.Errorf("%s: want one problem %q, got %v", tt.set, tt.want, err)
		}
	}
	for _, set := range []string{
		"rollout.servers=[http://a, http://a:8000/, https://a, http://b, http://10.0.0.7:8000, 'http://[::1]:8000']",
		"reward.judge_url=https://host:8000/v1", "reward.judge_url=http://a",
		"bus.url=nats://a", "bus.url=tls://a:4222,nats://b", "bus.url=a:4222", "bus.url=", "rollout.servers=",
	} {
		if _, err := Load(Request{File: write(t, minimal), Set: []string{set}}); err != nil {
			t.Errorf("%s: %v", set, err)
		}
	}
}
