package configs

import (
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/uadt-train/uadt-train/uadt"
)

// Types of keys that keep what they are given as it is written.
const (
	typeText = "text"
	typeList = "list" // of texts
)

// read returns text, of the environment or of --set, as YAML reads it; but as it
// stands where k is a text and it is not quoted, so that 0123, 1e3 and "a #b"
// stay what they are. No text at all empties a text or a list.
func (k Key) read(text string) any {
	var value any
	if err := yaml.Unmarshal([]byte(text), &value); err != nil {
		return text
	}
	_, isText := value.(string)
	_, isBool := value.(bool)
	_, isList := value.([]any)
	switch {
	case k.Type == typeText && isBool, k.Type == typeList && isList:
		return value
	case k.Type == typeText && isText && strings.IndexAny(text, `"'`) == 0:
		return value
	case k.Type == typeText, k.Type == typeList, value == nil:
		return text
	}
	return value
}

// keepText makes YAML decode the numbers and dates that node holds as the text
// they are written as, where k is one: a run may be called 0123 or 1e3.
func (k Key) keepText(node *yaml.Node) {
	switch {
	case k.Type == typeList && node.Kind == yaml.SequenceNode:
		for _, item := range node.Content {
			Key{Type: typeText}.keepText(item)
		}
	case k.Type == typeText && node.Kind == yaml.ScalarNode:
		switch node.ShortTag() {
		case "!!int", "!!float", "!!timestamp":
			node.Tag = "!!str"
		}
	}
}

// assign sets dst to raw, a value as YAML decodes it or as Key.read does.
func assign(dst reflect.Value, raw any) error {
	switch target := dst.Addr().Interface().(type) {
	case *time.Duration:
		return assignDuration(target, raw)
	case *uadt.Schedule:
		value, err := uadt.ParseSchedule(raw)
		*target = value
		return err
	case *uadt.Gamma:
		value, err := uadt.ParseGamma(raw)
		*target = value
		return err
	}
	switch dst.Kind() {
	case reflect.String:
		return assignText(dst, raw)
	case reflect.Bool:
		value, err := strconv.ParseBool(fmt.Sprint(raw))
		if err != nil {
			return fmt.Errorf("%v is not true or false", quote(raw))
		}
		dst.SetBool(value)
		return nil
	case reflect.Int, reflect.Int64:
		value, err := wholeNumber(raw)
		if err != nil {
			return err
		}
		dst.SetInt(value)
		return nil
	case reflect.Float64:
		value, err := strconv.ParseFloat(fmt.Sprint(raw), 64)
		if err != nil || math.IsNaN(value) || math.IsInf(value, 0) {
			return fmt.Errorf("%v is not a number", quote(raw))
		}
		dst.SetFloat(value)
		return nil
	case reflect.Slice:
		return assignList(dst, raw)
	}
	return fmt.Errorf("values of type %s are not supported", dst.Type())
}

func assignDuration(dst *time.Duration, raw any) error {
	value, err := time.ParseDuration(fmt.Sprint(raw))
	if err != nil {
		return fmt.Errorf("%v is not a duration such as 90s or 10m", quote(raw))
	}
	*dst = value
	return nil
}

func assignText(dst reflect.Value, raw any) error {
	switch raw.(type) {
	case map[string]any, []any:
		return fmt.Errorf("%v is not text", quote(raw))
	case nil:
		dst.SetString("")
	case bool:
		// YAML reads a bare off as false, which is a value of several keys here.
		if raw == false {
			dst.SetString("off")
			return nil
		}
		dst.SetString("on")
	default:
		dst.SetString(fmt.Sprint(raw))
	}
	return nil
}

func assignList(dst reflect.Value, raw any) error {
	var items []any
	switch raw := raw.(type) {
	case nil:
	case []any:
		items = raw
	case string:
		for item := range strings.SplitSeq(raw, ",") {
			if item = strings.TrimSpace(item); item != "" {
				items = append(items, item)
			}
		}
	default:
		return fmt.Errorf("%v is not a list", quote(raw))
	}
	if len(items) == 0 {
		dst.SetZero()
		return nil
	}
	list := reflect.MakeSlice(dst.Type(), len(items), len(items))
	for i, item := range items {
		if err := assign(list.Index(i), item); err != nil {
			return fmt.Errorf("element %d: %w", i, err)
		}
	}
	dst.Set(list)
	return nil
}

func wholeNumber(raw any) (int64, error) {
	if f, ok := raw.(float64); ok {
		if f != math.Trunc(f) || math.Abs(f) > 1<<53 {
			return 0, fmt.Errorf("%v is not a whole number", quote(raw))
		}
		return int64(f), nil
	}
	value, err := strconv.ParseInt(strings.ReplaceAll(fmt.Sprint(raw), "_", ""), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%v is not a whole number", quote(raw))
	}
	return value, nil
}

// plain is the inverse of assign: the value as it is written in YAML.
func plain(v reflect.Value) any {
	switch value := v.Interface().(type) {
	case time.Duration:
		return value.String()
	case uadt.Schedule:
		return value.Plain()
	case uadt.Gamma:
		return value.Plain()
	}
	switch v.Kind() {
	case reflect.Slice:
		items := make([]any, v.Len())
		for i := range items {
			items[i] = plain(v.Index(i))
		}
		return items
	case reflect.String:
		return v.String()
	}
	return v.Interface()
}

func quote(raw any) string {
	if text, ok := raw.(string); ok {
		return strconv.Quote(text)
	}
	return fmt.Sprint(raw)
}
