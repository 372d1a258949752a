package manifest

import (
	v1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// envFields are the rows of what a container's variables come from.
var envFields = []typeFields{
	{of: v1.EnvVar{}, supported: "name value valueFrom"},
	{of: v1.EnvVarSource{}, supported: "fieldRef resourceFieldRef configMapKeyRef secretKeyRef", refused: "fileKeyRef"},
	{of: v1.ConfigMapKeySelector{}, supported: "key optional"},
	{of: v1.SecretKeySelector{}, supported: "key optional"},
	{of: v1.EnvFromSource{}, supported: "prefix configMapRef secretRef"},
	{of: v1.ConfigMapEnvSource{}, supported: "optional"},
	{of: v1.SecretEnvSource{}, supported: "optional"},
}

func defaultEnv(c *v1.Container) {
	for i := range c.Env {
		if from := c.Env[i].ValueFrom; from != nil && from.FieldRef != nil {
			orDefault(&from.FieldRef.APIVersion, "v1")
		}
	}
}

// envFieldPaths are the fields of a pod that a variable can have, beside single
// labels and annotations.
var envFieldPaths = []string{
	"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName",
	"status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs",
}

func validateEnv(vars []v1.EnvVar, p *field.Path) (errs field.ErrorList) {
	for i := range vars {
		e, at := &vars[i], p.Index(i)
		if e.Name == "" {
			errs = append(errs, field.Required(at.Child("name"), ""))
		} else {
			errs = append(errs, invalid(at.Child("name"), e.Name, validation.IsRelaxedEnvVarName(e.Name))...)
		}
		if e.ValueFrom != nil {
			errs = append(errs, validateValueFrom(e, at.Child("valueFrom"))...)
		}
	}
	return errs
}

func validateValueFrom(e *v1.EnvVar, p *field.Path) (errs field.ErrorList) {
	from, sources := e.ValueFrom, 0
	if r := from.FieldRef; r != nil {
		sources++
		errs = append(errs, validateFieldRef(r, envFieldPaths, p.Child("fieldRef"))...)
	}
	if r := from.ResourceFieldRef; r != nil {
		sources++
		errs = append(errs, validateResourceFieldRef(r, false, p.Child("resourceFieldRef"))...)
	}
	if r := from.ConfigMapKeyRef; r != nil {
		sources++
		errs = append(errs, validateKeyRef(r.Name, r.Key, p.Child("configMapKeyRef"))...)
	}
	if r := from.SecretKeyRef; r != nil {
		sources++
		errs = append(errs, validateKeyRef(r.Name, r.Key, p.Child("secretKeyRef"))...)
	}
	switch {
	case sources == 0:
		errs = append(errs, field.Invalid(p, "", "must be one of fieldRef, resourceFieldRef, configMapKeyRef, secretKeyRef"))
	case e.Value != "":
		errs = append(errs, field.Invalid(p, "", "the variable has a value already"))
	case sources > 1:
		errs = append(errs, field.Invalid(p, "", "a variable comes from one place"))
	}
	return errs
}

func validateKeyRef(name, key string, p *field.Path) field.ErrorList {
	errs := invalid(p.Child("name"), name, apivalidation.NameIsDNSSubdomain(name, false))
	if key == "" {
		return append(errs, field.Required(p.Child("key"), ""))
	}
	return append(errs, invalid(p.Child("key"), key, validation.IsConfigMapKey(key))...)
}

// validateEnvFrom names the list in some errors, as the API server does.
func validateEnvFrom(list []v1.EnvFromSource, p *field.Path) (errs field.ErrorList) {
	for i, s := range list {
		at := p.Index(i)
		if s.Prefix != "" {
			errs = append(errs, invalid(at.Child("prefix"), s.Prefix, validation.IsRelaxedEnvVarName(s.Prefix))...)
		}
		if s.ConfigMapRef != nil {
			errs = append(errs, validateEnvSource(s.ConfigMapRef.Name, at.Child("configMapRef", "name"))...)
		}
		if s.SecretRef != nil {
			errs = append(errs, validateEnvSource(s.SecretRef.Name, at.Child("secretRef", "name"))...)
		}
		if (s.ConfigMapRef == nil) == (s.SecretRef == nil) {
			errs = append(errs, field.Invalid(p, "", "must be one of configMapRef and secretRef"))
		}
	}
	return errs
}

func validateEnvSource(name string, p *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	return invalid(p, name, apivalidation.NameIsDNSSubdomain(name, true))
}
