/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The commands of `hull`, one file each. A command gets its own name as argv[0] and returns the
 * exit status of the program; only main() exits.
 */
#ifndef HULL_CLI_CLI_H
#define HULL_CLI_CLI_H

int run_main(int argc, char **argv);
int host_main(int argc, char **argv);

#endif
