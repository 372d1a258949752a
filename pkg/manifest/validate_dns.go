package manifest

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// What a resolv.conf holds: the API server's and kubelet's limits, the first of
// which is the C library's.
const (
	MaxNameservers    = 3
	MaxSearches       = 32
	MaxSearchesLength = 2048 // in bytes, with the spaces between them
)

// validateNaming checks what a pod is called and how it finds others.
func validateNaming(spec *v1.PodSpec, p *field.Path) (errs field.ErrorList) {
	for _, f := range []struct{ name, value string }{{"hostname", spec.Hostname}, {"subdomain", spec.Subdomain}} {
		if f.value != "" {
			errs = append(errs, dnsLabel(f.value, p.Child(f.name))...)
		}
	}
	for i, a := range spec.HostAliases {
		at := p.Child("hostAliases").Index(i)
		errs = append(errs, validation.IsValidIPForLegacyField(at.Child("ip"), a.IP, true, nil)...)
		for j, name := range a.Hostnames {
			errs = append(errs, invalid(at.Child("hostnames").Index(j), name, validation.IsDNS1123Subdomain(name))...)
		}
	}
	return append(errs, validateDNSConfig(spec.DNSConfig, spec.DNSPolicy, p.Child("dnsConfig"))...)
}

func validateDNSConfig(c *v1.PodDNSConfig, policy v1.DNSPolicy, p *field.Path) (errs field.ErrorList) {
	switch {
	case c == nil && policy == v1.DNSNone:
		return field.ErrorList{field.Required(p, "dnsPolicy None takes everything from here")}
	case c == nil:
		return nil
	case len(c.Nameservers) == 0 && policy == v1.DNSNone:
		return field.ErrorList{field.Required(p.Child("nameservers"), "dnsPolicy None has no others")}
	}
	if at := p.Child("nameservers"); len(c.Nameservers) > MaxNameservers {
		errs = append(errs, field.Invalid(at, c.Nameservers, fmt.Sprintf("must have at most %d", MaxNameservers)))
	}
	for i, ip := range c.Nameservers {
		errs = append(errs, validation.IsValidIPForLegacyField(p.Child("nameservers").Index(i), ip, true, nil)...)
	}
	searches := p.Child("searches")
	if len(c.Searches) > MaxSearches {
		errs = append(errs, field.Invalid(searches, c.Searches, fmt.Sprintf("must have at most %d", MaxSearches)))
	}
	if len(strings.Join(c.Searches, " ")) > MaxSearchesLength {
		errs = append(errs, field.Invalid(searches, c.Searches, fmt.Sprintf("must have at most %d characters with the spaces between them", MaxSearchesLength)))
	}
	for i, s := range c.Searches {
		if s != "." {
			errs = append(errs, invalid(searches.Index(i), s, validation.IsDNS1123SubdomainWithUnderscore(strings.TrimSuffix(s, ".")))...)
		}
	}
	for i, o := range c.Options {
		if o.Name == "" {
			errs = append(errs, field.Required(p.Child("options").Index(i), "must have a name"))
		}
	}
	return errs
}
