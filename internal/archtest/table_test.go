package archtest

// module is our import path.
const module = "github.com/uadt-train/uadt-train/"

// anything lets a package import all of ours.
const anything = "*"

// table lists, for each package, which of ours it may import outside tests.
// It is the package table of docs/architecture.md; a package that is not
// listed fails.
var table = map[string][]string{
	"uadt":                   {},
	"reward":                 {"rollout"},
	"reward/judge":           {"reward", "rollout"},
	"rollout":                {},
	"rollout/vllm":           {"rollout"},
	"rollout/remote":         {"rollout", "internal/bus", "internal/safetensors"},
	"rollout/rollouttest":    {"rollout"},
	"trainer":                {"rollout"},
	"trainer/graph":          {"trainer", "rollout", "internal/qwenvl", "internal/checkpoint", "internal/vision", "internal/safetensors", "internal/matmul", "internal/qwenvl/kernel"},
	"trainer/remote":         {"trainer", "rollout", "internal/bus", "internal/safetensors"},
	"trainer/trainertest":    {"trainer", "rollout", "internal/safetensors"},
	"configs":                {"uadt", "reward", "trainer"},
	"experiments":            {"configs", "uadt", "reward", "rollout", "trainer", "internal/checkpoint", "internal/durable", "internal/safetensors"},
	"internal/archtest":      {},
	"internal/coordinator":   {"rollout", "reward", "uadt", "trainer", "internal/telemetry"},
	"internal/dataset":       {"rollout", "internal/blob"},
	"internal/blob":          {},
	"internal/encode":        {"trainer", "rollout", "internal/tokenizer", "internal/vision"},
	"internal/evaluate":      {"rollout", "reward"},
	"internal/phantom":       {"internal/dataset", "rollout"},
	"internal/internvl":      {"internal/checkpoint", "internal/safetensors", "internal/tokenizer"},
	"internal/qwenvl":        {"internal/checkpoint", "internal/safetensors", "internal/qwenvl/kernel"},
	"internal/qwenvl/kernel": {},
	"internal/matmul":        {},
	"internal/checkpoint":    {"internal/durable", "internal/safetensors"},
	"internal/durable":       {},
	"internal/safetensors":   {"internal/durable"},
	"internal/tokenizer":     {},
	"internal/vision":        {},
	"internal/micro":         {"internal/tokenizer", "internal/checkpoint", "internal/safetensors"},
	"internal/serve":         {"internal/qwenvl", "internal/tokenizer", "internal/vision", "internal/checkpoint"},
	"internal/bus":           {},
	"internal/telemetry":     {},
	"cmd/uadt-train":         {anything},
}

// owners lists third-party modules that only some packages may import.
var owners = map[string][]string{
	"gorgonia.org/":               {"trainer/graph"},
	"github.com/nats-io/":         {"internal/bus"},
	"github.com/spf13/viper":      {"configs"},
	"github.com/spf13/cobra":      {"cmd/uadt-train"},
	"github.com/parquet-go/":      {"experiments"},
	"github.com/vbauerster/":      {"internal/telemetry"},
	"github.com/prometheus/":      {"internal/telemetry"},
	"gopkg.in/yaml.v3":            {"configs", "internal/dataset", "experiments"},
	"go4.org/unsafe/":             {"trainer/graph"},
	"google.golang.org/protobuf/": {"internal/telemetry"},
}

// Limits of size, in lines and counts. Tests may grow to the file limit too.
const (
	maxFileLines        = 500
	maxMedianFileLines  = 150
	maxFunctionLines    = 80
	maxParameters       = 5
	maxInterfaceMethods = 5
)
