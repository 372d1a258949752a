package manifest

import (
	v1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func validateReadinessProbe(probe *v1.Probe, p *field.Path) field.ErrorList {
	if probe == nil {
		return nil
	}
	errs := validateProbe(probe, p)
	if s := probe.TerminationGracePeriodSeconds; s != nil {
		errs = append(errs, field.Invalid(p.Child("terminationGracePeriodSeconds"), *s, "must not be set: nothing is terminated when a readiness probe fails"))
	}
	return errs
}

// validateProbe checks what probes of every purpose have in common.
func validateProbe(probe *v1.Probe, p *field.Path) field.ErrorList {
	errs := validateProbeHandler(&probe.ProbeHandler, p)
	for _, f := range []struct {
		name  string
		value int32
	}{
		{"initialDelaySeconds", probe.InitialDelaySeconds}, {"timeoutSeconds", probe.TimeoutSeconds}, {"periodSeconds", probe.PeriodSeconds},
		{"successThreshold", probe.SuccessThreshold}, {"failureThreshold", probe.FailureThreshold},
	} {
		if f.value < 0 {
			errs = append(errs, field.Invalid(p.Child(f.name), f.value, apivalidation.IsNegativeErrorMsg))
		}
	}
	if s := probe.TerminationGracePeriodSeconds; s != nil && *s <= 0 {
		errs = append(errs, field.Invalid(p.Child("terminationGracePeriodSeconds"), *s, "must be greater than 0"))
	}
	return errs
}

// validateProbeHandler checks the first handler only; each further one is an
// error by being there.
func validateProbeHandler(h *v1.ProbeHandler, p *field.Path) (errs field.ErrorList) {
	found := false
	handler := func(name string, set bool, check func(*field.Path) field.ErrorList) {
		switch at := p.Child(name); {
		case !set:
		case found:
			errs = append(errs, field.Forbidden(at, "a probe asks in one way only"))
		default:
			found = true
			errs = append(errs, check(at)...)
		}
	}
	handler("exec", h.Exec != nil, func(at *field.Path) field.ErrorList {
		if len(h.Exec.Command) == 0 {
			return field.ErrorList{field.Required(at.Child("command"), "")}
		}
		return nil
	})
	handler("httpGet", h.HTTPGet != nil, func(at *field.Path) field.ErrorList { return validateHTTPGet(h.HTTPGet, at) })
	handler("tcpSocket", h.TCPSocket != nil, func(at *field.Path) field.ErrorList {
		return validatePortOrName(h.TCPSocket.Port, at.Child("port"))
	})
	handler("grpc", h.GRPC != nil, func(at *field.Path) field.ErrorList {
		return validatePortOrName(intstr.FromInt32(h.GRPC.Port), at.Child("port"))
	})
	if !found {
		errs = append(errs, field.Required(p, "must say how to ask: exec, httpGet, tcpSocket or grpc"))
	}
	return errs
}

func validateHTTPGet(h *v1.HTTPGetAction, p *field.Path) (errs field.ErrorList) {
	if h.Path == "" {
		errs = append(errs, field.Required(p.Child("path"), ""))
	}
	errs = append(errs, validatePortOrName(h.Port, p.Child("port"))...)
	errs = append(errs, oneOf(h.Scheme, p.Child("scheme"), v1.URISchemeHTTP, v1.URISchemeHTTPS)...)
	for _, header := range h.HTTPHeaders {
		errs = append(errs, invalid(p.Child("httpHeaders"), header.Name, validation.IsHTTPHeaderName(header.Name))...)
	}
	return errs
}

func validatePortOrName(port intstr.IntOrString, p *field.Path) field.ErrorList {
	if port.Type == intstr.String {
		return invalid(p, port.StrVal, validation.IsValidPortName(port.StrVal))
	}
	return invalid(p, port.IntVal, validation.IsValidPortNum(int(port.IntVal)))
}
