"""Files of other formats, read into trees and written from them, without their frameworks and without executing
anything.
"""
