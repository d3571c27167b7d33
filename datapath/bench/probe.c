// SPDX-License-Identifier: Apache-2.0
/*
 * What no packaged tool does by itself. Answers are one line of JSON.
 *
 *   probe serve PORT
 *   probe connect ADDRESS[,ADDRESS...] PORT SECONDS
 *       How many TCP connections a second can be opened and closed, one after the other,
 *       without a byte of data. The client closes first, and waits until the server has
 *       closed too, and goes to the addresses in turn: so each connection needs the server, which can be pinned to the same core
 *       without its queue running full, and a connection tracker sees the whole life of it.
 *   probe insist ADDRESS[,ADDRESS...] PORT SECONDS
 *       The same, of which some may fail: they are counted. What takes a second has failed.
 *
 *   probe echo PORT
 *   probe flows ADDRESS PORT COUNT
 *       A UDP packet and its answer in each of so many connections, from the addresses
 *       198.18.0.0/16, which have to be the machine's own.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SLOW_NS 100000000ULL /* a lost packet costs more than this, nothing else does */
#define CLIENTS 0xc6120000U  /* 198.18.0.0, of which 65,536 addresses are ours */
#define SOCKETS 64U	     /* so many ports each */
#define FIRST	20000U
#define SERVERS 16U /* that connect goes to in turn, at most */

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

static int serve(struct sockaddr_in *at)
{
	int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
	char byte;

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(listener, (struct sockaddr *)at, sizeof(*at)) || listen(listener, 4096))
		return fail("listen");
	for (;;) {
		int fd = accept(listener, NULL, NULL);

		if (fd < 0)
			return fail("accept");
		while (read(fd, &byte, 1) > 0)
			;
		close(fd);
	}
}

/* 0; 1: it could not be opened; 2: not closed. `patience`: the longest wait of a call, NULL: for ever. */
static int connect_once(const struct sockaddr_in *to, const struct timeval *patience)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0), failed = 0;
	char byte;

	if (fd < 0)
		return 1;
	if (patience) {
		setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, patience, sizeof(*patience));
		setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, patience, sizeof(*patience));
	}
	if (connect(fd, (const struct sockaddr *)to, sizeof(*to)))
		failed = 1;
	else if (shutdown(fd, SHUT_WR) || read(fd, &byte, 1) != 0)
		failed = 2;
	close(fd);
	return failed;
}

/* `count` of `to`, in turn. */
static int connect_and_close(const struct sockaddr_in *to, unsigned int count, double seconds,
			     const struct timeval *patience)
{
	unsigned long long begin = now(), end = begin + (unsigned long long)(seconds * 1e9);
	unsigned long long before, after = begin;
	unsigned long done = 0, slow = 0, failures = 0;
	unsigned int next = 0;
	int failed;

	for (before = begin; before < end; before = after) {
		failed = connect_once(to + next, patience);
		next = next + 1 < count ? next + 1 : 0;
		if (failed && !patience)
			return fail(failed == 1 ? "connect" : "close");
		after = now();
		slow += after - before > SLOW_NS;
		failures += !!failed;
		done += !failed;
	}
	printf("{\"connections\": %lu, \"seconds\": %.6f, \"slow\": %lu, \"failed\": %lu}\n", done,
	       (after - begin) / 1e9, slow, failures);
	return 0;
}

static int echo(struct sockaddr_in *at)
{
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	struct sockaddr_in peer;
	char data[1500];

	if (bind(fd, (struct sockaddr *)at, sizeof(*at)))
		return fail("bind");
	for (;;) {
		socklen_t size = sizeof(peer);
		ssize_t got = recvfrom(fd, data, sizeof(data), 0, (struct sockaddr *)&peer, &size);

		if (got >= 0)
			sendto(fd, data, got, 0, (struct sockaddr *)&peer, size);
	}
}

static int send_from(int fd, struct sockaddr_in *to, unsigned int source)
{
	char control[CMSG_SPACE(sizeof(struct in_pktinfo))] = {};
	struct iovec data = {.iov_base = "?", .iov_len = 1};
	struct msghdr message = {
		.msg_name = to,
		.msg_namelen = sizeof(*to),
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	struct in_pktinfo info = {.ipi_spec_dst.s_addr = htonl(source)};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = IPPROTO_IP;
	header->cmsg_type = IP_PKTINFO;
	header->cmsg_len = CMSG_LEN(sizeof(info));
	memcpy(CMSG_DATA(header), &info, sizeof(info));
	return sendmsg(fd, &message, 0);
}

static int flows(struct sockaddr_in *to, unsigned int count)
{
	struct sockaddr_in at = {.sin_family = AF_INET};
	struct timeval patience = {.tv_usec = 200000};
	unsigned int done, batch, i, answered = 0;
	int fds[SOCKETS];
	char byte;

	for (done = 0; done < SOCKETS; done++) {
		fds[done] = socket(AF_INET, SOCK_DGRAM, 0);
		setsockopt(fds[done], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
		at.sin_port = htons(FIRST + done);
		if (bind(fds[done], (struct sockaddr *)&at, sizeof(at)))
			return fail("bind");
	}
	/* One of each socket at a time: to wait for each answer would cost two switches of processes. */
	for (done = 0; done < count; done += batch) {
		batch = count - done < SOCKETS ? count - done : SOCKETS;
		for (i = 0; i < batch; i++)
			if (send_from(fds[i], to, CLIENTS + 1 + done / SOCKETS) < 0)
				return fail("send");
		for (i = 0; i < batch; i++)
			answered += recv(fds[i], &byte, 1, 0) == 1;
	}
	printf("{\"flows\": %u, \"answered\": %u}\n", count, answered);
	return 0;
}

/* How many addresses the list has; 0: it is none. */
static unsigned int servers_of(char *list, int port, struct sockaddr_in *to)
{
	unsigned int count = 0;
	char *one;

	for (one = strtok(list, ","); one; one = strtok(NULL, ",")) {
		if (count == SERVERS || inet_pton(AF_INET, one, &to[count].sin_addr) != 1)
			return 0;
		to[count].sin_family = AF_INET;
		to[count++].sin_port = htons(port);
	}
	return count;
}

int main(int argc, char **argv)
{
	struct sockaddr_in addr = {.sin_family = AF_INET}, servers[SERVERS] = {};
	struct timeval second = {.tv_sec = 1};
	unsigned int count;

	if (argc == 3) {
		addr.sin_port = htons(atoi(argv[2]));
		if (!strcmp(argv[1], "serve"))
			return serve(&addr);
		if (!strcmp(argv[1], "echo"))
			return echo(&addr);
	}
	count = argc == 5 ? servers_of(argv[2], atoi(argv[3]), servers) : 0;
	if (count && !strcmp(argv[1], "connect"))
		return connect_and_close(servers, count, atof(argv[4]), NULL);
	if (count && !strcmp(argv[1], "insist"))
		return connect_and_close(servers, count, atof(argv[4]), &second);
	if (count == 1 && !strcmp(argv[1], "flows"))
		return flows(servers, atoi(argv[4]));
	fprintf(stderr, "usage: probe serve|echo PORT, probe connect|insist ADDRESS[,ADDRESS...] "
			"PORT SECONDS, "
			"probe flows ADDRESS PORT COUNT\n");
	return 2;
}
