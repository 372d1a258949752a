package manifest

import (
	"fmt"

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
	h := &probe.ProbeHandler
	errs := validateHandler(handler{exec: h.Exec, httpGet: h.HTTPGet, tcpSocket: h.TCPSocket, grpc: h.GRPC}, nil, p)
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

// handler is what a probe or a hook does.
type handler struct {
	exec      *v1.ExecAction
	httpGet   *v1.HTTPGetAction
	tcpSocket *v1.TCPSocketAction
	grpc      *v1.GRPCAction
	sleep     *v1.SleepAction
}

// validateHandler checks the first action only; each further one is an error by
// being there.
func validateHandler(h handler, grace *int64, p *field.Path) (errs field.ErrorList) {
	found := false
	action := func(name string, set bool, check func(*field.Path) field.ErrorList) {
		switch at := p.Child(name); {
		case !set:
		case found:
			errs = append(errs, field.Forbidden(at, "only one of exec, httpGet, tcpSocket, grpc and sleep can be done"))
		default:
			found = true
			errs = append(errs, check(at)...)
		}
	}
	action("exec", h.exec != nil, func(at *field.Path) field.ErrorList {
		if len(h.exec.Command) == 0 {
			return field.ErrorList{field.Required(at.Child("command"), "")}
		}
		return nil
	})
	action("httpGet", h.httpGet != nil, func(at *field.Path) field.ErrorList { return validateHTTPGet(h.httpGet, at) })
	action("tcpSocket", h.tcpSocket != nil, func(at *field.Path) field.ErrorList {
		return validatePortOrName(h.tcpSocket.Port, at.Child("port"))
	})
	action("grpc", h.grpc != nil, func(at *field.Path) field.ErrorList {
		return validatePortOrName(intstr.FromInt32(h.grpc.Port), at.Child("port"))
	})
	action("sleep", h.sleep != nil, func(at *field.Path) field.ErrorList {
		if grace != nil && (h.sleep.Seconds < 0 || h.sleep.Seconds > *grace) {
			return field.ErrorList{field.Invalid(at, h.sleep.Seconds, fmt.Sprintf("must be between 0 and terminationGracePeriodSeconds (%d)", *grace))}
		}
		return nil
	})
	if !found {
		errs = append(errs, field.Required(p, "must say what to do: exec, httpGet, tcpSocket, grpc or sleep"))
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
