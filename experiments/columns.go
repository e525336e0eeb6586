package experiments

// kind is the type of a ledger column.
type kind uint8

const (
	kindString kind = iota
	kindBool
	kindInt
	kindFloat
	kindStrings
)

var kindNames = map[kind]string{kindString: "string", kindBool: "bool", kindInt: "int64", kindFloat: "float64", kindStrings: "[]string"}

// fixedColumns are in every ledger file, null where a step has no value, so
// that the files of a run have one schema and open together. Other columns
// (reward/<part>, advantage_shaped/<rule>) take their type from their values.
var fixedColumns = map[string]kind{
	"run": kindString, "incarnation": kindInt, "stage": kindString, "step": kindInt, "epoch": kindInt,
	"job": kindString, "trace": kindInt, "question": kindString, "type": kindString, "modality": kindString,
	"level": kindString, "split": kindString, "gold": kindString,
	"answer": kindString, "answer_reason": kindString, "answer_f1": kindFloat,
	"finish": kindString, "dropped": kindString, "missing": kindBool, "correct": kindBool,
	"reward": kindFloat, "group_mean": kindFloat, "group_std": kindFloat, "zero_variance": kindBool,
	"entropy": kindFloat, "estimator": kindString, "temperature": kindFloat,
	"tau": kindFloat, "sigma": kindFloat, "u": kindFloat, "omega": kindFloat,
	"lambda": kindFloat, "gain": kindFloat, "gamma": kindFloat, "rule": kindString,
	"advantage": kindFloat, "advantage_shaped": kindFloat, "advantage_shaped_min": kindFloat, "advantage_shaped_max": kindFloat,
	"length": kindInt, "prompt_tokens": kindInt, "logprob_sum": kindFloat,
	"policy_sent": kindInt, "policy_received": kindInt, "policy_scored": kindInt,
	"seed": kindInt, "server": kindString, "images": kindStrings, "text": kindString,
}

// kindOf says what column type holds value.
func kindOf(value any) (kind, bool) {
	switch value.(type) {
	case string:
		return kindString, true
	case bool:
		return kindBool, true
	case int64:
		return kindInt, true
	case float64:
		return kindFloat, true
	case []string:
		return kindStrings, true
	}
	return 0, false
}
