package configs

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// CheckServers says of each of the base URLs of servers why it cannot be one, or
// that it is that of an earlier one. A path is refused: routes such as
// /v1/completions and /pause are put behind the URL, so that http://host/v1,
// which other programs want, would reach neither.
func CheckServers(servers []string) error {
	var errs []error
	seen := map[string]string{}
	for _, server := range servers {
		u, err := parseAddress(server, "http", "https")
		if err == nil && strings.Trim(u.Path, "/") != "" {
			err = fmt.Errorf("%q has the path %s, want only %s://%s", server, u.Path, u.Scheme, u.Host)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if other, twice := seen[origin(u)]; twice {
			errs = append(errs, fmt.Errorf("%q is the server of %q, which is listed before", server, other))
			continue
		}
		seen[origin(u)] = server
	}
	return errors.Join(errs...)
}

// CheckBus says why text cannot be the address of a NATS server, or of several
// with commas between. As with NATS's own tools the scheme may be left out.
func CheckBus(text string) error {
	var errs []error
	for one := range strings.SplitSeq(text, ",") {
		whole := strings.TrimSpace(one)
		if !strings.Contains(whole, "://") {
			whole = "nats://" + whole
		}
		u, err := parseAddress(whole, "nats", "tls")
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%q is no address, want one such as nats://host:4222", one))
		case strings.Trim(u.Path, "/") != "":
			errs = append(errs, fmt.Errorf("%q has the path %s, want only %s://%s", one, u.Path, u.Scheme, u.Host))
		}
	}
	return errors.Join(errs...)
}

// checkJudge says why text cannot be the base URL of a judge, whose path may be
// anything.
func checkJudge(text string) error {
	_, err := parseAddress(text, "http", "https")
	return err
}

// parseAddress reads a URL that other parts can be put behind, of one of schemes.
func parseAddress(text string, schemes ...string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || !slices.Contains(schemes, u.Scheme) || u.Hostname() == "" || strings.ContainsAny(text, "?#") {
		return nil, fmt.Errorf("%q is no address, want one such as %s://host:8000", text, schemes[0])
	}
	if port := u.Port(); port != "" || strings.HasSuffix(u.Host, ":") {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return nil, fmt.Errorf("%q has the port %q, want one of 1 to 65535", text, port)
		}
	}
	return u, nil
}

// origin is the same text for two URLs of the same scheme, host and port.
func origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Scheme + "://" + net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}
