// SPDX-License-Identifier: Apache-2.0
/*
 * Questions for names, and answers. It is built twice, against glibc and, where musl-gcc is there, against musl, as
 * `lookup` is a measurement of the library.
 *
 *   questions ask ADDRESS PORT SECONDS COUNT FILE
 *       Asks for the A records of the names in FILE, one a line, in turn, from one socket; so many questions are
 *       without an answer at any time. An answer has to be of the question and to have a record, or it is called wrong;
 *       one that is not there after a second is lost. Says one line of JSON, times in nanoseconds.
 *
 *   questions lookup SECONDS NAME
 *       getaddrinfo() of all addresses again and again, the same; with 0 seconds once: its addresses, one a line.
 *
 *   questions flood ADDRESS PORT FILE
 *       Asks for these names as fast as it can from many sockets, and hears no answer.
 *
 *   questions serve ADDRESS PORT ANSWER
 *       Answers every question over UDP: ANSWER is an IPv4 address, servfail, refused, nxdomain, or silent, for none.
 *       AAAA of a name with an address is NODATA. Its TTL is a minute.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define NAMES	 16384
#define SAMPLES	 4000000U
#define OPEN	 64 /* questions at a time, at most */
#define TURNS	 (65536 / OPEN)
#define HEADER	 12
#define QUESTION 4 /* type and class */
#define TYPE_A	 1

struct name {
	unsigned char wire[256];
	size_t size;
};

static struct name names[NAMES];
static unsigned int name_count;
static unsigned int *times; /* ns each */
static unsigned int time_count;

static int fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	return 1;
}

static unsigned long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static void note(unsigned long long took)
{
	if (time_count < SAMPLES)
		times[time_count++] = took < 0xffffffffULL ? took : 0xffffffffU;
}

static int by_size(const void *a, const void *b)
{
	unsigned int one = *(const unsigned int *)a, other = *(const unsigned int *)b;

	return one < other ? -1 : one > other;
}

static unsigned int quantile(unsigned int percent)
{
	return time_count ? times[(unsigned long long)(time_count - 1) * percent / 100] : 0;
}

static void report(unsigned long answered, unsigned long lost, unsigned long wrong, double seconds)
{
	qsort(times, time_count, sizeof(*times), by_size);
	printf("{\"answered\": %lu, \"lost\": %lu, \"wrong\": %lu, \"seconds\": %.6f, "
	       "\"p50_ns\": %u, \"p90_ns\": %u, \"p99_ns\": %u}\n",
	       answered, lost, wrong, seconds, quantile(50), quantile(90), quantile(99));
}

/* Wire form of a name with dots; 0 if it has none. */
static int encode(const char *text, struct name *name)
{
	unsigned char *at = name->wire;

	while (*text && *text != '\n') {
		size_t label = strcspn(text, ".\n");

		if (!label || label > 63 || at + label + 2 > name->wire + sizeof(name->wire))
			return 0;
		*at++ = label;
		memcpy(at, text, label);
		at += label;
		text += label + (text[label] == '.');
	}
	*at++ = 0;
	name->size = at - name->wire;
	return 1;
}

static int read_names(const char *path)
{
	FILE *file = fopen(path, "r");
	char line[512];

	if (!file)
		return fail(path);
	while (name_count < NAMES && fgets(line, sizeof(line), file))
		name_count += encode(line, &names[name_count]);
	fclose(file);
	if (name_count)
		return 0;
	fprintf(stderr, "%s: no names\n", path);
	return 1;
}

struct asked {
	unsigned long long when;
	unsigned int turn;
};

static struct asked asked[OPEN];

static ssize_t send_id(int fd, const struct name *name, unsigned short id)
{
	unsigned char message[HEADER + 256 + QUESTION] = {id >> 8, id, 1 /* RD */, 0, 0, 1};

	memcpy(message + HEADER, name->wire, name->size);
	message[HEADER + name->size + 1] = TYPE_A;
	message[HEADER + name->size + 3] = 1; /* IN */
	return send(fd, message, HEADER + name->size + QUESTION, MSG_DONTWAIT);
}

static int send_question(int fd, unsigned int slot, unsigned int turn)
{
	asked[slot] = (struct asked){now(), turn};
	return send_id(fd, &names[turn % name_count], turn % TURNS * OPEN + slot) < 0;
}

/* The slot of a right answer, -1 of a wrong one. */
static int check(const unsigned char *message, ssize_t size)
{
	unsigned int id = message[0] << 8 | message[1], slot = id % OPEN;
	const struct name *name = &names[asked[slot].turn % name_count];

	if (size < (ssize_t)(HEADER + name->size + QUESTION + 16) ||
	    id / OPEN != asked[slot].turn % TURNS)
		return -1;
	if (!(message[2] & 0x80) || message[3] & 15 || !(message[6] << 8 | message[7]))
		return -1;
	return memcmp(message + HEADER, name->wire, name->size) ? -1 : (int)slot;
}

static int ask(const struct sockaddr *to, socklen_t to_size, double seconds, unsigned int count)
{
	unsigned long answered = 0, lost = 0, wrong = 0;
	struct timeval patience = {.tv_sec = 1};
	int fd = socket(to->sa_family, SOCK_DGRAM, 0);
	unsigned long long begin, end;
	unsigned int turn = 0, slot;
	unsigned char message[4096];

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	if (fd < 0 || connect(fd, to, to_size))
		return fail("connect");
	begin = now();
	end = begin + (unsigned long long)(seconds * 1e9);
	for (slot = 0; slot < count; slot++)
		if (send_question(fd, slot, turn++))
			return fail("send");
	while (now() < end) {
		ssize_t got = recv(fd, message, sizeof(message), 0);
		int found;

		if (got < 0 && errno == EAGAIN) {
			lost += count;
			for (slot = 0; slot < count; slot++)
				if (send_question(fd, slot, turn++))
					return fail("send");
			continue;
		}
		if (got < 0)
			return fail("receive");
		found = got < HEADER ? -1 : check(message, got);
		if (found < 0) {
			wrong++;
			continue;
		}
		note(now() - asked[found].when);
		answered++;
		if (send_question(fd, found, turn++))
			return fail("send");
	}
	report(answered, lost, wrong, (now() - begin) / 1e9);
	return 0;
}

static int flood(const struct sockaddr *to, socklen_t to_size)
{
	unsigned int turn, i;
	int fds[OPEN];

	for (i = 0; i < OPEN; i++) {
		fds[i] = socket(to->sa_family, SOCK_DGRAM, 0);
		if (fds[i] < 0 || connect(fds[i], to, to_size))
			return fail("connect");
	}
	for (turn = 0;; turn++)
		send_id(fds[turn % OPEN], &names[turn % name_count], turn / OPEN);
}

static int print_all(const struct addrinfo *found)
{
	for (; found; found = found->ai_next) {
		char text[INET6_ADDRSTRLEN];

		if (getnameinfo(found->ai_addr, found->ai_addrlen, text, sizeof(text), NULL, 0,
				NI_NUMERICHOST))
			return 1;
		puts(text);
	}
	return 0;
}

static int lookup(double seconds, const char *name)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
	unsigned long long begin = now(), before, after = begin;
	unsigned long long end = begin + (unsigned long long)(seconds * 1e9);
	unsigned long answered = 0;
	int code;

	do {
		before = now();
		code = getaddrinfo(name, NULL, &hints, &found);
		after = now();
		if (code) {
			fprintf(stderr, "%s: %s\n", name, gai_strerror(code));
			return 1;
		}
		if (!seconds)
			return print_all(found);
		freeaddrinfo(found);
		note(after - before);
		answered++;
	} while (after < end);
	report(answered, 0, 0, (after - begin) / 1e9);
	return 0;
}

static int serve(const struct sockaddr *at, socklen_t at_size, const char *answer)
{
	static const char *const codes[] = {[2] = "servfail", [3] = "nxdomain", [5] = "refused"};
	unsigned char record[] = {0xc0, HEADER, 0, TYPE_A, 0, 1, 0, 0, 0, 60, 0, 4, 0, 0, 0, 0};
	int fd = socket(at->sa_family, SOCK_DGRAM, 0), code = 0, silent = !strcmp(answer, "silent");
	unsigned char message[4096];
	unsigned int i;

	for (i = 0; i < sizeof(codes) / sizeof(*codes); i++)
		if (codes[i] && !strcmp(answer, codes[i]))
			code = i;
	if (!code && !silent && inet_pton(AF_INET, answer, record + 12) != 1) {
		fprintf(stderr, "%s: no such answer\n", answer);
		return 2;
	}
	if (fd < 0 || bind(fd, at, at_size))
		return fail("bind");
	for (;;) {
		struct sockaddr_storage peer;
		socklen_t peer_size = sizeof(peer);
		ssize_t got = recvfrom(fd, message, sizeof(message) - sizeof(record), 0,
				       (struct sockaddr *)&peer, &peer_size);
		unsigned char *end;

		if (got < HEADER + 1 + QUESTION || silent)
			continue;
		end = memchr(message + HEADER, 0, got - HEADER - QUESTION);
		if (!end)
			continue;
		end += 1 + QUESTION;
		message[2] |= 0x80;
		message[3] = 0x80 | code;
		memset(message + 6, 0, 6);
		if (!code && end[-3] == TYPE_A) {
			message[7] = 1;
			memcpy(end, record, sizeof(record));
			end += sizeof(record);
		}
		sendto(fd, message, end - message, 0, (struct sockaddr *)&peer, peer_size);
	}
}

static socklen_t parse(const char *address, const char *port, struct sockaddr_storage *found)
{
	struct sockaddr_in6 *six = (struct sockaddr_in6 *)found;
	struct sockaddr_in *four = (struct sockaddr_in *)found;

	memset(found, 0, sizeof(*found));
	if (inet_pton(AF_INET, address, &four->sin_addr) == 1) {
		four->sin_family = AF_INET;
		four->sin_port = htons(atoi(port));
		return sizeof(*four);
	}
	if (inet_pton(AF_INET6, address, &six->sin6_addr) == 1) {
		six->sin6_family = AF_INET6;
		six->sin6_port = htons(atoi(port));
		return sizeof(*six);
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct sockaddr_storage address;
	socklen_t size = argc >= 5 ? parse(argv[2], argv[3], &address) : 0;

	times = malloc(SAMPLES * sizeof(*times));
	if (!times)
		return fail("memory");
	if (argc == 7 && size && !strcmp(argv[1], "ask") && atoi(argv[5]) > 0 &&
	    atoi(argv[5]) <= OPEN)
		return read_names(argv[6]) ||
		       ask((struct sockaddr *)&address, size, atof(argv[4]), atoi(argv[5]));
	if (argc == 5 && size && !strcmp(argv[1], "flood"))
		return read_names(argv[4]) || flood((struct sockaddr *)&address, size);
	if (argc == 4 && !strcmp(argv[1], "lookup"))
		return lookup(atof(argv[2]), argv[3]);
	if (argc == 5 && size && !strcmp(argv[1], "serve"))
		return serve((struct sockaddr *)&address, size, argv[4]);
	fprintf(stderr, "usage: questions ask ADDRESS PORT SECONDS COUNT FILE, questions lookup "
			"SECONDS NAME, "
			"questions serve ADDRESS PORT ANSWER\n");
	return 2;
}
