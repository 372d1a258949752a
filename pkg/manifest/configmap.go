package manifest

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"

	v1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func configMapKind() kind {
	return kind{
		apiVersion: "v1", name: "ConfigMap", resource: "configmaps", short: "cm", empty: &v1.ConfigMap{}, nameRule: apivalidation.NameIsDNSSubdomain,
		fields: []typeFields{{of: v1.ConfigMap{}, supported: "apiVersion kind metadata immutable data binaryData"}},
		complete: func(r Resource) {
			if c := r.(*v1.ConfigMap); c.Data == nil {
				c.Data = map[string]string{}
			}
		},
		recheckMeta: true, strictUpdate: true,
		validate: func(now, old Resource) field.ErrorList {
			c := now.(*v1.ConfigMap)
			errs := validateConfigMap(c)
			if old == nil || !isTrue(old.(*v1.ConfigMap).Immutable) {
				return errs
			}
			was := old.(*v1.ConfigMap)
			return append(errs, frozen(isTrue(c.Immutable), map[string][2]any{
				"data": {c.Data, was.Data}, "binaryData": {c.BinaryData, was.BinaryData}})...)
		},
	}
}

func validateConfigMap(c *v1.ConfigMap) (errs field.ErrorList) {
	data, binary, total := field.NewPath("data"), field.NewPath("binaryData"), 0
	for key, value := range c.Data {
		errs = append(errs, invalid(data.Key(key), key, validation.IsConfigMapKey(key))...)
		if _, twice := c.BinaryData[key]; twice {
			errs = append(errs, field.Invalid(data.Key(key), key, "is in binaryData, too"))
		}
		total += len(value)
	}
	for key, value := range c.BinaryData {
		errs = append(errs, invalid(binary.Key(key), key, validation.IsConfigMapKey(key))...)
		total += len(value)
	}
	if total > v1.MaxSecretSize {
		// The whole object is too large, which no field names.
		errs = append(errs, field.TooLong(field.NewPath(""), "", v1.MaxSecretSize))
	}
	return errs
}

func isTrue(b *bool) bool { return b != nil && *b }

// frozen refuses changes of the contents of what was immutable.
func frozen(still bool, contents map[string][2]any) (errs field.ErrorList) {
	const msg = "cannot be changed: the object is immutable; delete it and create it again"
	if !still {
		errs = append(errs, field.Forbidden(field.NewPath("immutable"), msg))
	}
	for _, name := range slices.Sorted(maps.Keys(contents)) {
		// To the API server, too, an empty value is another one than none.
		if pair := contents[name]; !reflect.DeepEqual(pair[0], pair[1]) {
			errs = append(errs, field.Forbidden(field.NewPath(name), msg))
		}
	}
	return errs
}

func secretKind() kind {
	return kind{
		apiVersion: "v1", name: "Secret", resource: "secrets", empty: &v1.Secret{}, nameRule: apivalidation.NameIsDNSSubdomain,
		fields:   []typeFields{{of: v1.Secret{}, supported: "apiVersion kind metadata immutable data stringData type"}},
		complete: func(r Resource) { completeSecret(r.(*v1.Secret)) }, recheckMeta: true, strictUpdate: true,
		validate: func(now, old Resource) field.ErrorList {
			s := now.(*v1.Secret)
			errs := validateSecret(s)
			if old == nil {
				return errs
			}
			was := old.(*v1.Secret)
			errs = append(errs, apivalidation.ValidateImmutableField(s.Type, was.Type, field.NewPath("type"))...)
			if isTrue(was.Immutable) {
				errs = append(errs, frozen(isTrue(s.Immutable), map[string][2]any{"data": {s.Data, was.Data}})...)
			}
			return errs
		},
	}
}

// completeSecret makes one dictionary of the two that a manifest may have, as
// the API server does: what is in stringData wins.
func completeSecret(s *v1.Secret) {
	orDefault(&s.Type, v1.SecretTypeOpaque)
	if len(s.StringData) == 0 {
		return
	}
	if s.Data == nil {
		s.Data = make(map[string][]byte, len(s.StringData))
	}
	for key, value := range s.StringData {
		s.Data[key] = []byte(value)
	}
	s.StringData = nil
}

// validateSecret quotes no value: its messages are logged.
func validateSecret(s *v1.Secret) (errs field.ErrorList) {
	p, total := field.NewPath("data"), 0
	for key, value := range s.Data {
		errs = append(errs, invalid(p.Key(key), key, validation.IsConfigMapKey(key))...)
		total += len(value)
	}
	if total > v1.MaxSecretSize {
		errs = append(errs, field.TooLong(p, "", v1.MaxSecretSize))
	}
	needs := func(key string) {
		errs = append(errs, field.Required(p.Key(key), ""))
	}
	has := func(key string) bool { _, ok := s.Data[key]; return ok }
	switch s.Type {
	case v1.SecretTypeServiceAccountToken:
		if s.Annotations[v1.ServiceAccountNameKey] == "" {
			errs = append(errs, field.Required(field.NewPath("metadata", "annotations").Key(v1.ServiceAccountNameKey), ""))
		}
	case v1.SecretTypeDockercfg:
		errs = append(errs, validateJSON(s, v1.DockerConfigKey, p)...)
	case v1.SecretTypeDockerConfigJson:
		errs = append(errs, validateJSON(s, v1.DockerConfigJsonKey, p)...)
	case v1.SecretTypeBasicAuth:
		if !has(v1.BasicAuthUsernameKey) && !has(v1.BasicAuthPasswordKey) {
			needs(v1.BasicAuthUsernameKey)
			needs(v1.BasicAuthPasswordKey)
		}
	case v1.SecretTypeSSHAuth:
		if len(s.Data[v1.SSHAuthPrivateKey]) == 0 {
			needs(v1.SSHAuthPrivateKey)
		}
	case v1.SecretTypeTLS:
		for _, key := range []string{v1.TLSCertKey, v1.TLSPrivateKeyKey} {
			if !has(key) {
				needs(key)
			}
		}
	}
	return errs
}

func validateJSON(s *v1.Secret, key string, p *field.Path) field.ErrorList {
	text, ok := s.Data[key]
	if !ok {
		return field.ErrorList{field.Required(p.Key(key), "")}
	}
	if err := json.Unmarshal(text, &map[string]any{}); err != nil {
		return field.ErrorList{field.Invalid(p.Key(key), "<secret>", "is no JSON object")}
	}
	return nil
}
