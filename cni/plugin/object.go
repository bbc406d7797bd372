package plugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// object is a JSON object being read field by field, so that every complaint
// names its field by path and no field is silently ignored.
type object struct {
	path   string // "" at the top, "ipam." inside
	fields map[string]json.RawMessage
	errs   []error
}

// parseObject reads data as an object. path is "" or ends with a dot.
func parseObject(path string, data []byte) (*object, error) {
	o := &object{path: path}
	if err := json.Unmarshal(data, &o.fields); err != nil || o.fields == nil {
		return nil, fieldError(strings.TrimSuffix(path, "."), jsonReason(err, "an object"))
	}
	return o, nil
}

// fieldError is a complaint about the field at path.
func fieldError(path, reason string) error {
	if path == "" {
		return errors.New(reason)
	}
	return fmt.Errorf("%s: %s", path, reason)
}

// take decodes the field key into dst, if it is there, and marks it as known.
func (o *object) take(key string, dst any) bool {
	raw, ok := o.fields[key]
	if !ok {
		return false
	}
	delete(o.fields, key)
	if bytes.Equal(raw, []byte("null")) {
		return false
	}
	if err := json.Unmarshal(raw, dst); err != nil {
		o.fail(key, jsonReason(err, ""))
		return false
	}
	return true
}

// fail records a complaint about a field.
func (o *object) fail(key, reason string) {
	o.errs = append(o.errs, fieldError(o.path+key, reason))
}

// adopt records the complaints about an object inside this one.
func (o *object) adopt(err error) {
	if err != nil {
		o.errs = append(o.errs, err)
	}
}

// finish returns every complaint, among them the fields that nobody took.
// refused names fields that other plugins know, which are fine while empty.
func (o *object) finish(refused ...string) error {
	var unknown []string
	for key, raw := range o.fields {
		switch {
		case strings.ContainsAny(key, "./"): // vendor fields, such as cni.dev/attachments
		case slices.Contains(refused, key) && isEmpty(raw):
		default:
			unknown = append(unknown, key)
		}
	}
	slices.Sort(unknown)
	for _, key := range unknown {
		if slices.Contains(refused, key) {
			o.fail(key, "not supported by berth-cni")
		} else {
			o.fail(key, "unknown field")
		}
	}
	return errors.Join(o.errs...)
}

// isEmpty tells whether raw is the zero value of any type.
func isEmpty(raw json.RawMessage) bool {
	return slices.Contains([]string{"null", "false", "0", `""`, "[]", "{}"}, string(bytes.TrimSpace(raw)))
}

// jsonReason says what is wrong with a JSON value.
func jsonReason(err error, want string) string {
	var typeErr *json.UnmarshalTypeError
	switch {
	case errors.As(err, &typeErr) && want == "":
		return fmt.Sprintf("%s where %s is expected", typeErr.Value, kindName(typeErr.Type.Kind().String()))
	case errors.As(err, &typeErr):
		return fmt.Sprintf("%s where %s is expected", typeErr.Value, want)
	case err == nil:
		return "null where " + want + " is expected"
	}
	return err.Error()
}

// kindName says in the words of JSON what a Go kind is.
func kindName(kind string) string {
	switch {
	case kind == "bool":
		return "true or false"
	case kind == "slice":
		return "a list"
	case kind == "map" || kind == "struct":
		return "an object"
	case strings.HasPrefix(kind, "int"), strings.HasPrefix(kind, "uint"):
		return "an integer"
	}
	return "a string"
}
